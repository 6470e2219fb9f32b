#!/bin/bash
# SLURM: one process per GPU on two nodes of eight. From the repository's root, with a workdir and data that all nodes see (or URLs):
#   sbatch docs/launch/slurm.sh --config=configs/r23d.py --workdir=/shared/runs/r23d --config.data.root=/shared/ucf101/frames
# Other numbers: sbatch --nodes=1 --ntasks-per-node=4 --gpus-per-node=4 docs/launch/slurm.sh ...
# Five minutes before the time limit, and where the job is preempted, all processes save at the same step; the job then
# queues again and goes on from there. `scancel --signal=TERM JOBID.0` does the same by hand.
#SBATCH --job-name=r23d
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
stopped=75

# As many tasks as GPUs, and no --gpus-per-task: jax gives the process of SLURM_LOCALID n the n-th GPU of those it sees.
# No kill on a bad exit: a process that is lost ends the others by itself, and all must report how they ended.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-8}
srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" launch.py "$@" --distributed --stopped_status="$stopped"
status=$?

if [ "$status" -eq "$stopped" ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
