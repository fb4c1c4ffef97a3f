#!/usr/bin/env bash
# The paper's own setting, from data to table: options and a LoRA trained on OpenMathReasoning, teacher-forced and
# free-running on Omni-MATH, then reinforcement learning over options and over the vocabulary.
# Runs unattended on one CUDA GPU of 80 GB, and resumes where it stopped.
#
#   experiments/studies/paper.sh MODEL DATA OUT
#
# MODEL is the folder of DeepSeek-R1-Distill-Qwen-1.5B; another Qwen2 will do. DATA holds OpenMathReasoning and Omni-MATH
# as downloaded from the hub. Flags in the environment variables SFT, LORA, FORCED, RL and EVAL come last, such as
# SFT="--limit 100" for a trial. experiments/results/paper.md says what it costs.
set -euo pipefail
model=${1:?give MODEL, DATA and OUT} data=${2:?give MODEL, DATA and OUT} out=${3:?give MODEL, DATA and OUT}
presets=$(dirname "$0")/../presets
ollm() { python3 -m ollm_rl.cli "$@"; }
sft() { # NAME, flags
    # shellcheck disable=SC2086  # words of flags
    ollm sft --config "$presets/paper_$1.yaml" --backbone "$model" --data "hf:$data/OpenMathReasoning" \
        --held_out "hf:$data/Omni-MATH" --out "$out/$1" ${SFT:-} "${@:2}"
}
rl() { # NAME, settings
    # shellcheck disable=SC2086
    ollm train --config "$presets/paper_rl.yaml" --model "$out/options" --data "hf:$data/OpenMathReasoning" \
        --out "$out/$1" "${@:2}" ${RL:-}
}
sft options
# shellcheck disable=SC2086
sft lora ${LORA:-}
# shellcheck disable=SC2086
[ -f "$out/forced.json" ] || ollm teacher-forced --model "$out/options" --lora "$out/lora" --data "hf:$data/Omni-MATH" \
    --limit null --dtype bfloat16 --out "$out/forced.json" ${FORCED:-}
rl latent --policy latent
rl vocabulary --action_space tokens --learning_rate 1e-4
# shellcheck disable=SC2086
ollm eval --model "$model" "$out/lora" "$out/options" "$out/latent" "$out/vocabulary" --data "hf:$data/Omni-MATH" \
    --limit null --max_new_tokens 8192 --num_slots 192 --dtype bfloat16 --out "$out/eval" ${EVAL:-}
python3 -m ollm_rl.experiments.studies.paper_table "$out" | tee "$out/table.md"
