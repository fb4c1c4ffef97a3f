#!/usr/bin/env bash
# More options on the backbone of smollm2_human_styles.sh: trained on its English solutions only (OUT/english), and for
# controls untrained (OUT/untrained) and a single one (OUT/one-option).
#
#   experiments/studies/smollm2_more_options.sh DATA OUT
#
# DATA and OUT are those of smollm2_human_styles.sh. Flags in OPTIONS come last, but for what makes these options.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
# shellcheck disable=SC2206  # words of flags
options=(${OPTIONS:-})
[ -f "$out/backbone/model.safetensors" ] || python3 -m ollm_rl.experiments.studies.merge "$out/lora" "$out/backbone"
[ -f "$out/data/counts.json" ] || python3 -m ollm_rl.experiments.studies.human_styles "$data" "$out/data"
grep -v '"style": "spanish"' "$out/data/sft.jsonl" >"$out/data/english.jsonl"
sft() { # NAME, solutions, flags
    python3 -m ollm_rl.cli sft --config "$(dirname "$0")/../presets/smollm2_options.yaml" --save_steps 50 \
        --backbone "$out/backbone" --data "jsonl:$out/data/$2.jsonl" --out "$out/$1" "${options[@]}" "${@:3}"
}
sft english english
sft untrained sft --max_steps 1 --learning_rate 1e-9
sft one-option sft --options.num_options 1
