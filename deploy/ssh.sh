#!/usr/bin/env bash
# Train on machines that ssh reaches, one worker each. Ctrl-C stops all at one step with a checkpoint.
#
#   deploy/ssh.sh HOSTS swav-tf pretrain /data/ILSVRC2012/train -c passl_4nodes --run-dir /shared/runs/first
#
# HOSTS has one `host` or `user@host` per line; # begins a comment. The first is machine 0, which all others must reach
# by that name. Each needs swav-tf at the same path, keys instead of passwords, and the shared run folder. Each line of
# output begins with the worker's number.
#
# Settings: SWAV_TF_PORT, where the machines meet; SWAV_TF_DIR, the folder the command runs in (default: the current
# one). Each machine makes its crops in one process per core, which overrides the recipe's data.processes, unless the
# command sets it.

set -uo pipefail

if [[ $# -lt 2 || ! -r $1 ]]; then
    echo "usage: $0 HOSTS swav-tf pretrain ... --run-dir SHARED_FOLDER   (HOSTS: a file, one host per line)" >&2
    exit 2
fi
mapfile -t hosts < <(sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$1")
shift
if [[ ${#hosts[@]} -eq 0 ]]; then
    echo "HOSTS must name at least one host" >&2
    exit 2
fi
port=${SWAV_TF_PORT:-$((20000 + RANDOM % 12000))}
first=${hosts[0]##*@}
[[ $first == *:* ]] && first="[$first]"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Every ssh reads from one pipe that only this script keeps open. When it closes, by Ctrl-C or because this script
# dies, each machine sees the end of its input and asks its worker to stop.
mkfifo "$folder/alive"
exec 9<>"$folder/alive"

quote() { printf '%q ' "$@"; }

# One Python process makes some 1,000 images/s on any number of cores.
# shellcheck disable=SC2016 # nproc runs on each machine
processes='-o data.processes=$(nproc)'
[[ $* == *data.processes=* ]] && processes=
# Insert it after the subcommand: of two values of a setting, the last one counts.
behind=$#
for ((word = $#; word > 0; word--)); do
    [[ ${!word} =~ ^(pretrain|probe|finetune)$ ]] && behind=$word
done

# Job control gives each ssh its own process group: only this script receives Ctrl-C.
set -m
workers=()
for rank in "${!hosts[@]}"; do
    begin=$(quote "${@:1:behind}")
    rest=$(quote "${@:behind+1}" --nodes "${#hosts[@]}" --node-rank "$rank" --master "$first:$port")
    remote="cd $(quote "${SWAV_TF_DIR:-$PWD}") || exit 2
        exec 3<&0
        $begin $processes $rest </dev/null 3<&- &
        worker=\$!
        { cat; kill -TERM \$worker; } <&3 >/dev/null 2>&1 &
        wait \$worker"
    ssh -o BatchMode=yes "${hosts[$rank]}" "bash -c $(printf '%q' "$remote")" \
        <"$folder/alive" 9>&- > >(exec 9>&- && sed -u "s/^/$rank: /") 2>&1 &
    workers+=($!)
done

# shellcheck disable=SC2329 # the trap calls it
stop() {
    trap '' INT TERM # only once
    echo "stopping all at one step ..." >&2
    exec 9>&-
}
trap stop INT TERM

worst=0
for rank in "${!workers[@]}"; do
    # `wait` also returns at a signal, and must then be repeated.
    while :; do
        wait "${workers[$rank]}"
        code=$?
        kill -0 "${workers[$rank]}" 2>/dev/null || break
    done
    [[ $code -ne 0 ]] && echo "worker $rank (${hosts[$rank]}) ended with $code" >&2
    ((code > worst)) && worst=$code
done
exit "$worst"
