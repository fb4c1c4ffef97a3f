#!/usr/bin/env bash
# Optimal selection on the demo backbone: teacher-forced beside a LoRA of the same data and steps, and free-running at
# equal budgets of generated tokens beside best-of-N of backbone and LoRA. Minutes on a CPU; resumes where it stopped.
#
#   experiments/studies/tiny_arith_selection.sh OUT
#
# Flags in SFT and SEARCH come last.
set -euo pipefail
out=${1:?give OUT}
ollm() { python3 -m ollm_rl.cli "$@"; }
# shellcheck disable=SC2206  # words of flags
sft=(--max_steps 150 --batch_size 32 ${SFT:-}) search=(${SEARCH:-})
ollm sft --learning_rate 3e-3 --out "$out/options" "${sft[@]}"
ollm sft --stage lora --learning_rate 1e-3 --out "$out/lora" "${sft[@]}"
[ -f "$out/forced.json" ] || ollm teacher-forced --model "$out/options" --lora "$out/lora" --limit 300 --out "$out/forced.json"
selection() { # MODEL, method
    local file="$out/$2-$(basename "$1").json" # one run gives all budgets up to its own
    [ -f "$file" ] || ollm search --model "$1" --method "$2" --budget_tokens 192 --max_new_tokens 48 --limit 300 \
        --out "$file" "${search[@]}"
}
for model in tiny-arith "$out/lora" "$out/options"; do selection "$model" best-of-n; done
selection "$out/options" beam
selection "$out/options" mcts
python3 -m ollm_rl.experiments.studies.selection_table "$out"
