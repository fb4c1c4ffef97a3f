#!/usr/bin/env bash
# Optimal selection on SmolLM2-135M: teacher-forced beside a LoRA of the same data and steps, with the nats that the oracle's
# choices reveal, and free-running on word problems at equal budgets of generated tokens beside best-of-N of backbone and LoRA.
# Needs the OUT of smollm2_words.sh; runs unattended on one CUDA GPU, and resumes where it stopped.
#
#   experiments/studies/smollm2_selection.sh DATA OUT
#
# DATA holds gsm8k_train.jsonl and gsm8k_dev.jsonl. Flags in SFT, FORCED and SEARCH come last.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
presets=$(dirname "$0")/../presets
ollm() { python3 -m ollm_rl.cli "$@"; }
# shellcheck disable=SC2206  # words of flags
sft=(${SFT:-}) forced=(${FORCED:-}) search=(${SEARCH:-})
ollm sft --config "$presets/smollm2_options.yaml" --stage lora --lora_rank 16 --backbone "$out/backbone" \
    --data "jsonl:$data/gsm8k_train.jsonl" --out "$out/lora" "${sft[@]}"
mkdir -p "$out/selection"
[ -f "$out/selection/forced.json" ] || ollm teacher-forced --model "$out/options" --lora "$out/lora" --dtype bfloat16 \
    --data "jsonl:$data/gsm8k_dev.jsonl" --limit null --out "$out/selection/forced.json" "${forced[@]}"
selection() { # MODEL, method
    local file="$out/selection/$2-$(basename "$1").json" # one run gives all budgets up to its own
    [ -f "$file" ] || ollm search --model "$1" --method "$2" --data "jsonl:$out/test.jsonl" --limit 300 --dtype bfloat16 \
        --budget_tokens 1024 --max_new_tokens 128 --num_slots 300 --out "$file" "${search[@]}"
}
for model in "$out"/{backbone,lora,options}; do selection "$model" best-of-n; done
selection "$out/options" beam
selection "$out/options" mcts
python3 -m ollm_rl.experiments.studies.selection_table "$out/selection"
