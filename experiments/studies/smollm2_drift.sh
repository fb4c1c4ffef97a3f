#!/usr/bin/env bash
# Drift of SmolLM2-135M in long training on prompts in five languages, over options and over the vocabulary.
# Runs unattended on one CUDA GPU after smollm2_human_styles.sh, whose backbone and options it uses, and resumes.
#
#   experiments/studies/smollm2_drift.sh DATA OUT
#
# DATA holds mgsm_exemplars.jsonl and mgsm_dev.jsonl too; OUT is that of smollm2_human_styles.sh. Trained on are the 40
# exemplars in English, German, Spanish, French and Swahili and 160 English word problems, 16 times each. Three processes
# share the GPU. Flags in DRIFT come last.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
presets=$(dirname "$0")/../presets
# shellcheck disable=SC2206  # words of flags
drift=(${DRIFT:-})
[ -f "$out/backbone/model.safetensors" ] || python3 -m ollm_rl.experiments.studies.merge "$out/lora" "$out/backbone"
mkdir -p "$out/drift/data" "$out/drift/logs"
five='"lang": "(en|de|es|fr|sw)"'
{ grep -E "$five" "$data/mgsm_exemplars.jsonl"; head -n 160 "$out/data/rl.jsonl"; } >"$out/drift/data/train.jsonl"
grep -E "$five" "$data/mgsm_dev.jsonl" >"$out/drift/data/test.jsonl"
work() {
    python3 -m ollm_rl.experiments.studies.drift --config "$presets/smollm2_drift.yaml" --train.model "$out/options" \
        --train.data "jsonl:$out/drift/data/train.jsonl" --eval_data "jsonl:$out/drift/data/test.jsonl" \
        --out "$out/drift/results" "${drift[@]}"
}
for worker in 1 2 3; do work >"$out/drift/logs/$worker.log" 2>&1 & done
for job in $(jobs -p); do wait "$job"; done
work # all runs exist by now, so this prints the tables
