#!/usr/bin/env bash
# The settings that tuning chose on styles from human text, on fresh seeds: both sides also with English options, controls,
# PPO, and the vocabulary with a replay. Runs unattended on one CUDA GPU after smollm2_human_styles.sh, and resumes.
#
#   experiments/studies/smollm2_human_styles_fresh.sh DATA OUT
#
# DATA and OUT are those of smollm2_human_styles.sh. Flags in OPTIONS and COMPARE come last.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
presets=$(dirname "$0")/../presets
# shellcheck disable=SC2206  # words of flags
compare=(${COMPARE:-})
"$(dirname "$0")/smollm2_more_options.sh" "$data" "$out"
for name in fresh controls ppo; do
    sed "s#runs/#$out/#" "$presets/smollm2_human_styles_${name}_compare.yaml" >"$out/$name.yaml"
    python3 -m ollm_rl.cli compare --config "$out/$name.yaml" --train.model "$out/options" \
        --train.data "jsonl:$out/data/rl.jsonl" --train.eval_data "jsonl:$out/data/test.jsonl" \
        --eval_data "jsonl:$out/data/test.jsonl" --max_concurrent 3 --out "$out/$name" "${compare[@]}"
done
