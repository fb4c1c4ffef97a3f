#!/usr/bin/env bash
# Drift of SmolLM2-135M in long training on prompts in five languages, over options and over the vocabulary, then PPO and
# controls. Runs unattended on one CUDA GPU after smollm2_human_styles.sh, whose backbone and options it uses, and resumes.
#
#   experiments/studies/smollm2_drift.sh DATA OUT
#
# DATA holds mgsm_exemplars.jsonl and mgsm_dev.jsonl (data.py) too; OUT is that of smollm2_human_styles.sh. Trained on
# are the 40 exemplars in English, German, Spanish, French and Swahili and 160 English word problems, 32 times each. Three processes
# share each GPU in GPUS, such as GPUS="0 1" (else the visible one). Flags in OPTIONS and DRIFT come last.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
presets=$(dirname "$0")/../presets
# shellcheck disable=SC2206  # words of flags
drift=(${DRIFT:-})
"$(dirname "$0")/smollm2_more_options.sh" "$data" "$out"
mkdir -p "$out/drift/data" "$out/drift/logs"
five='"lang": "(en|de|es|fr|sw)"'
{ grep -E "$five" "$data/mgsm_exemplars.jsonl"; head -n 160 "$out/data/rl.jsonl"; } >"$out/drift/data/train.jsonl"
grep -E "$five" "$data/mgsm_dev.jsonl" >"$out/drift/data/test.jsonl"
work() { # NAME
    python3 -m ollm_rl.experiments.studies.drift --config "$out/drift/$1.yaml" --train.model "$out/options" \
        --train.data "jsonl:$out/drift/data/train.jsonl" --eval_data "jsonl:$out/drift/data/test.jsonl" \
        --out "$out/drift/$1" "${drift[@]}"
}
for name in drift controls_drift; do
    sed "s#runs/#$out/#" "$presets/smollm2_$name.yaml" >"$out/drift/$name.yaml"
    for gpu in ${GPUS:-${CUDA_VISIBLE_DEVICES:-0}}; do
        for worker in 1 2 3; do CUDA_VISIBLE_DEVICES=$gpu work "$name" >"$out/drift/logs/$name-$gpu-$worker.log" 2>&1 & done
    done
    for job in $(jobs -p); do wait "$job" || true; done
    work "$name" # runs exist by now, so this prints the tables; it does what a process that failed left, or says why not
done
