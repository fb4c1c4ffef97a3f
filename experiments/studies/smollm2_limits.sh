#!/usr/bin/env bash
# What limits options in a setting: greedy accuracy and pass@k (k 1 to 64) of backbone and options before training, and how
# far policies on the frozen hidden state get by imitating the vocabulary run. Needs the OUT of smollm2_words.sh,
# smollm2_styles.sh or smollm2_human_styles.sh; runs unattended on one CUDA GPU, and resumes where it stopped.
#
#   experiments/studies/smollm2_limits.sh OUT TRAIN TEST
#
# TRAIN and TEST are the problems of that script, such as jsonl:OUT/train.jsonl jsonl:OUT/test.jsonl, or arith arith with
# IMITATION="--limit 600". Fewer SAMPLES, and flags in EVAL and IMITATION that come last, serve for a trial.
set -euo pipefail
out=${1:?give OUT, TRAIN and TEST} train=${2:?give OUT, TRAIN and TEST} test=${3:?give OUT, TRAIN and TEST}
study() { python3 -m "ollm_rl.experiments.studies.$1" "${@:2}"; }
# shellcheck disable=SC2206  # words of flags
imitation=(${IMITATION:-}) eval=(${EVAL:-})
evaluate() { # NAME, settings
    python3 -m ollm_rl.cli eval --model "$out/backbone" "$out/options" --data "$test" --limit 600 --max_new_tokens 128 \
        --num_slots 512 --dtype bfloat16 --out "$out/$1" "${@:2}" "${eval[@]}"
}
evaluate greedy
evaluate pass --sample true --samples "${SAMPLES:-64}"
# A LoRA's checkpoints are too large to travel from machine to machine.
[ -f "$out/imitation/frozen-head.json" ] || study retrain "$out/compare/runs/vocabulary-seed0"
study imitation --teacher "$out/compare/runs/vocabulary-seed0" --options "$out/options" --train "$train" --test "$test" \
    --dtype bfloat16 --out "$out/imitation" "${imitation[@]}"
study limits "$out" --save "$out/limits.json"
