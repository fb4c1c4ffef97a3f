#!/usr/bin/env bash
# Optimal selection on SmolLM2-135M with styles from human text: teacher-forced along human solutions of GSM8K, and
# free-running at equal budgets of generated tokens, beside the backbone and a LoRA of the same data and steps as the options.
# Runs unattended on one CUDA GPU after smollm2_human_styles.sh, whose backbone and options it uses, and resumes.
#
#   experiments/studies/smollm2_selection.sh DATA OUT
#
# DATA holds gsm8k_dev.jsonl too; OUT is that of smollm2_human_styles.sh. Flags in LORA, FORCED and SEARCH come last.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
presets=$(dirname "$0")/../presets
ollm() { python3 -m ollm_rl.cli "$@"; }
# shellcheck disable=SC2206  # words of flags
lora=(${LORA:-}) forced=(${FORCED:-}) search=(${SEARCH:-})
mkdir -p "$out/selection"
ollm sft --stage lora --backbone "$out/backbone" --data "jsonl:$out/data/sft.jsonl" --max_steps 250 --batch_size 64 \
    --learning_rate 1e-3 --max_length 512 --dtype bfloat16 --out "$out/selection/lora" "${lora[@]}"
[ -f "$out/selection/forced.json" ] || ollm teacher-forced --model "$out/options" --lora "$out/selection/lora" \
    --data "jsonl:$data/gsm8k_dev.jsonl" --limit 600 --dtype bfloat16 --out "$out/selection/forced.json" "${forced[@]}"
selection() { # MODEL, method
    local file="$out/selection/$2-$(basename "$1").json" # one run gives all budgets up to its own
    [ -f "$file" ] || ollm search --model "$1" --method "$2" --data "jsonl:$out/data/test.jsonl" --limit 600 \
        --budget_tokens 512 --max_new_tokens 128 --num_slots 512 --dtype bfloat16 --out "$file" "${search[@]}"
}
for model in "$out/backbone" "$out/selection/lora" "$out/options"; do selection "$model" best-of-n; done
selection "$out/options" beam
selection "$out/options" mcts
python3 -m ollm_rl.experiments.studies.selection_table "$out/selection"
