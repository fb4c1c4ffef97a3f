#!/usr/bin/env bash
# Which options to train on SmolLM2-135M and GSM8K: 4 KL targets x 3 policies x identity option on and off, 3 seeds.
# Runs unattended on one CUDA GPU after smollm2_gsm8k.sh, whose backbone it uses, and resumes where it stopped.
#
#   experiments/studies/smollm2_options.sh DATA OUT
#
# DATA and OUT as for smollm2_gsm8k.sh. Greedy accuracy is measured on the problems that reinforcement learning trains on,
# since they are many and the supervised stage has seen none of them. Five processes share each GPU. Speeds are measured
# at the end, without other runs.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}"
mkdir -p "$out/logs"
grid() { # seeds
    python3 -m ollm_rl.experiments.studies.option_grid --backbone "$out/backbone" --train "jsonl:$data/gsm8k_train.jsonl" \
        --forced "jsonl:$data/gsm8k_dev.jsonl" --free "jsonl:$data/word_problems_train.jsonl" \
        --sampled 300 --out "$out/grid" --dtype bfloat16 --batch-size 32 --seeds "$@"
}
for worker in $(seq 0 $((5 * ${#gpus[@]} - 1))); do # each begins with a different seed
    CUDA_VISIBLE_DEVICES=${gpus[worker / 5]} grid $((worker % 3)) $(((worker + 1) % 3)) $(((worker + 2) % 3)) \
        >"$out/logs/grid-$worker.log" 2>&1 &
done
for job in $(jobs -p); do wait "$job"; done
grid 0 1 2 # all rows exist by now, so this prints the tables

for backbone in smollm2-135m qwen2.5-1.5b-random; do
    # A LoRA on Qwen takes more than 80 GB at 64 solutions.
    [ -f "$out/bench_sft-$backbone.json" ] || python3 -m ollm_rl.experiments.bench.sft --backbone "$backbone" --device cuda \
        --batch-size 32 --json "$out/bench_sft-$backbone.json"
done
python3 -m ollm_rl.experiments.bench.head --device cuda --positions 1024 4096
