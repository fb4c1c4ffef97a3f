#!/usr/bin/env bash
# Does a LoRA overfit early while options keep improving? The demo backbone on 256 solutions for ever longer, scored along
# solutions of other problems, on three seeds. Twenty minutes on a CPU; resumes where it stopped.
#
#   experiments/studies/tiny_arith_overfit.sh OUT
#
# Other SEEDS and STEPS, and flags in SFT that come last, serve for a trial.
set -euo pipefail
out=${1:?give OUT}
ollm() { python3 -m ollm_rl.cli "$@"; }
# shellcheck disable=SC2206  # words of flags
sft=(--limit 256 --batch_size 32 ${SFT:-})
for seed in ${SEEDS:-0 1 2}; do
    for steps in ${STEPS:-60 240 960}; do
        run=$steps-$seed
        [ -f "$out/$run.json" ] && continue
        length=(--max_steps "$steps" --save_steps "$steps" --seed "$seed")
        ollm sft --learning_rate 3e-3 --out "$out/options-$run" "${length[@]}" "${sft[@]}"
        ollm sft --stage lora --learning_rate 1e-3 --out "$out/lora-$run" "${length[@]}" "${sft[@]}"
        ollm teacher-forced --model "$out/options-$run" --lora "$out/lora-$run" --limit 512 --out "$out/$run.json"
    done
done
python3 -m ollm_rl.experiments.studies.overfit_table "$out"
