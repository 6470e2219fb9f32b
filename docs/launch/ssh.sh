#!/bin/bash
# Hosts that ssh reaches without a password: one process per host, each with all its devices. From the repository's root,
# which must be at the same path on all hosts, as must the data; the workdir must be on a disk that all share, or a URL:
#   docs/launch/ssh.sh "node1 node2" --config=configs/r23d.py --workdir=/shared/runs/r23d
# Process 0 runs on the first host, under a name by which the others reach it. Ctrl-C stops and saves.
set -euo pipefail
read -ra hosts <<<"$1"
shift
port=${PORT:-47123}
printf -v run '%q ' "${PYTHON:-.venv/bin/python}" launch.py "$@"
printf -v folder '%q' "$PWD"
pid_file=/tmp/r23d_jax.$port.pid

children=()
for id in "${!hosts[@]}"; do
  place="--coordinator=${hosts[0]}:$port --num_processes=${#hosts[@]} --process_id=$id"
  [ "$id" -eq 0 ] && note="echo \$\$ >$pid_file &&" || note=
  ssh -o BatchMode=yes "${hosts[id]}" "cd $folder && $note exec $run $place" </dev/null &
  children+=($!)
done

# A signal to one process stops all at the same step
trap 'ssh -o BatchMode=yes "${hosts[0]}" "kill -TERM \$(cat $pid_file)" </dev/null' INT TERM
status=0
for child in "${children[@]}"; do
  code=0
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # it was the wait that a signal ended
    code=0
    wait "$child" || code=$?
  done
  [ "$code" -gt "$status" ] && status=$code
done
exit "$status"
