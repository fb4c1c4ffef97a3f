#!/usr/bin/env bash
# One step of a study on a machine that can be had for minutes only: unpacks what earlier steps left, runs the study's script
# until it ends or the time is up, and packs what the next step needs.
#
#   experiments/studies/step.sh SECONDS STATE OUT SCRIPT ARGUMENTS...
#   experiments/studies/step.sh 500 state runs/styles experiments/studies/smollm2_human_styles.sh data runs/styles
#
# OUT is the folder that SCRIPT writes. STATE gets files of at most 15 MB; bring them along to another machine. Fine-tuned
# backbones travel as LoRAs and are merged again; checkpoints above 3 MB stay behind, so a run that was interrupted there
# begins again on another machine, and one that had ended does not. Exit status 0: the study has ended; 124: call again.
set -uo pipefail
[ $# -ge 4 ] || { echo "give SECONDS, STATE, OUT and SCRIPT" >&2 && exit 2; }
seconds=$1 state=$2 out=$3
shift 3
mkdir -p "$state"
if [ ! -e "$out" ] && compgen -G "$state/state.*" >/dev/null; then
    mkdir -p "$out" && cat "$state"/state.* | tar -xz -C "$out" || exit 1
fi
timeout --kill-after=40 "$seconds" "$@" # the signal reaches all processes of the script, which save and end
status=$?
[ -e "$out" ] || exit "$status"
rm -f "$state"/new.*
(cd "$out" && find . -type f \( -size -3M -o -name adapter_model.safetensors \) ! -path '*/checkpoint-*' \
    ! -path './backbone/*' ! -name 'events.out*' ! -name '*.lock' -print0 | tar -cz --null -T -) \
    | split -b 15m - "$state/new." || exit 1
rm -f "$state"/state.*
for piece in "$state"/new.*; do mv "$piece" "$state/state.${piece##*.}"; done
((status == 0)) && echo "the study has ended" || echo "exit status $status; the same command continues"
exit "$status"
