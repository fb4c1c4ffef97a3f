#!/usr/bin/env bash
# Options on the backbone of smollm2_human_styles.sh that are trained on its English solutions only, in OUT/english.
#
#   experiments/studies/smollm2_english_options.sh DATA OUT
#
# DATA and OUT are those of smollm2_human_styles.sh. Flags in OPTIONS come last.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
# shellcheck disable=SC2206  # words of flags
options=(${OPTIONS:-})
[ -f "$out/backbone/model.safetensors" ] || python3 -m ollm_rl.experiments.studies.merge "$out/lora" "$out/backbone"
[ -f "$out/data/counts.json" ] || python3 -m ollm_rl.experiments.studies.human_styles "$data" "$out/data"
grep -v '"style": "spanish"' "$out/data/sft.jsonl" >"$out/data/english.jsonl"
python3 -m ollm_rl.cli sft --config "$(dirname "$0")/../presets/smollm2_options.yaml" --save_steps 50 \
    --backbone "$out/backbone" --data "jsonl:$out/data/english.jsonl" --out "$out/english" "${options[@]}"
