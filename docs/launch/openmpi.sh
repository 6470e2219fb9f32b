#!/bin/bash
# Open MPI 4 or 5: one process per host of a hostfile, each with all devices of its host. From the repository's root, which
# must be at the same path on all hosts, as must the data; the workdir must be on a disk that all share, or a URL:
#   docs/launch/openmpi.sh hosts.txt --config=configs/r23d.py --workdir=/shared/runs/r23d
# The place of each process is passed by flags, because jax 0.10 recognizes Open MPI 4 only.
# To stop and save: kill -TERM any one of the python processes. Not mpirun, nor Ctrl-C: it would kill them a second later.
set -euo pipefail
hostfile=$1
shift
# Process 0 runs on the first host
first=$(awk '!/^[[:space:]]*(#|$)/ {print $1; exit}' "$hostfile")
export PLACE_PYTHON=${PYTHON:-.venv/bin/python} PLACE_COORDINATOR=$first:${PORT:-47123}

# shellcheck disable=SC2016  # expanded on each host
exec mpirun --hostfile "$hostfile" --map-by ppr:1:node --bind-to none -x PLACE_PYTHON -x PLACE_COORDINATOR bash -c \
  'exec "$PLACE_PYTHON" launch.py "$@" --coordinator="$PLACE_COORDINATOR" --num_processes="$OMPI_COMM_WORLD_SIZE" \
    --process_id="$OMPI_COMM_WORLD_RANK"' launch "$@"
