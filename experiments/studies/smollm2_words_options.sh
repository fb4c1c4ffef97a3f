#!/usr/bin/env bash
# Which options the anchored policy learns most from on word problems: K 10 and 32, KL targets 0.4 and 0.8, and options
# trained on right solutions of several lengths, beside the vocabulary. Runs unattended on the CUDA GPUs named in
# CUDA_VISIBLE_DEVICES (0 if unset), and resumes where it stopped.
#
#   experiments/studies/smollm2_words_options.sh DATA OUT
#
# DATA and OUT as for smollm2_words.sh, whose data, backbone and options are used, or made here. Another BACKBONE, and flags
# in SFT, OPTIONS, COMPARE and IMITATION that come last, serve for a trial.
set -euo pipefail
data=${1:?give DATA and OUT} out=${2:?give DATA and OUT}
presets=$(dirname "$0")/../presets
ollm() { python3 -m ollm_rl.cli "$@"; }
study() { python3 -m "ollm_rl.experiments.studies.$1" "${@:2}"; }
# shellcheck disable=SC2206  # words of flags
sft=(${SFT:-}) options=(${OPTIONS:-}) compare=(${COMPARE:-}) imitation=(${IMITATION:-})
IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES:-0}"
jobs_begun=0
aside() { # a command beside the others, on the next GPU
    local device=${devices[jobs_begun % ${#devices[@]}]}
    jobs_begun=$((jobs_begun + 1))
    CUDA_VISIBLE_DEVICES=$device "$@" &
}
together() { for job in $(jobs -p); do wait "$job"; done; }

mkdir -p "$out"
head -n -300 "$data/word_problems_train.jsonl" >"$out/train.jsonl"
{ cat "$data/word_problems_dev.jsonl"; tail -n 300 "$data/word_problems_train.jsonl"; } >"$out/test.jsonl"
[ -f "$out/lengths.jsonl" ] || study lengths "$data/gsm8k_train.jsonl" "$out/lengths.jsonl"
ollm sft --config "$presets/smollm2_backbone.yaml" --backbone "${BACKBONE:-smollm2-135m}" \
    --data "jsonl:$data/gsm8k_train.jsonl" --out "$out/backbone" "${sft[@]}"
train_options() { # NAME, data, settings
    ollm sft --config "$presets/smollm2_options.yaml" --backbone "$out/backbone" --data "jsonl:$2" --out "$out/$1" \
        "${@:3}" "${options[@]}"
}
aside train_options options "$data/gsm8k_train.jsonl" --options.kl_target 0.8
aside train_options options-k32 "$data/gsm8k_train.jsonl" --options.kl_target 0.8 --options.num_options 32
together
aside train_options options-kl0.4 "$data/gsm8k_train.jsonl" --options.kl_target 0.4
aside train_options options-lengths "$out/lengths.jsonl" --options.kl_target 0.8
together
sed "s#OUT#$out#" "$presets/smollm2_words_options_compare.yaml" >"$out/compare.yaml"
ollm compare --config "$out/compare.yaml" --train.data "jsonl:$out/train.jsonl" --train.eval_data "jsonl:$out/test.jsonl" \
    --eval_data "jsonl:$out/test.jsonl" --out "$out/compare-options" "${compare[@]}"
ceiling() { # how much of the vocabulary's success some options can write, and what imitating it reaches
    study imitation --teacher "$out/compare-options/runs/vocabulary-seed0" --options "$out/$1" \
        --train "jsonl:$out/train.jsonl" --test "jsonl:$out/test.jsonl" --dtype bfloat16 --students anchored \
        --out "$out/imitation-$1" "${imitation[@]}"
}
aside ceiling options
aside ceiling options-k32
together
aside ceiling options-kl0.4
aside ceiling options-lengths
together
