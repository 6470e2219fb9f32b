#!/bin/bash
# A Cloud TPU slice, from your own machine with gcloud, in the repository's root:
#   export TPU=r23d ZONE=us-central2-b TYPE=v4-32
#   docs/launch/tpu.sh create      # the slice; SPOT=1 for one that may be taken away
#   docs/launch/tpu.sh install     # this folder and its packages, on all hosts
#   docs/launch/tpu.sh train --config=configs/r23d.py --workdir=gs://BUCKET/runs/r23d --config.data.source=packed \
#     --config.data.root=gs://BUCKET/ucf101/packed --config.data.lists=gs://BUCKET/ucfTrainTestlist
#   docs/launch/tpu.sh stop        # saves; `train` with the same arguments goes on
#   docs/launch/tpu.sh delete
# Google's servers tell every host its place. Results lie in the bucket, which outlives the slice. With frames as JPEG
# files, which a bucket cannot serve, use a Filestore (NFS): SHARE=10.0.0.2:/share is mounted by `install` at /mnt/share.
set -euo pipefail
action=${1:-}
[ $# -gt 0 ] && shift
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"

everywhere() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}

case $action in
  create)
    gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" --accelerator-type="${TYPE:?e.g. v4-32}" \
      --version="${VERSION:-tpu-ubuntu2204-base}" ${SPOT:+--spot}
    ;;
  install)
    git archive --prefix=r23d_jax/ --output=/tmp/r23d_jax.tar.gz HEAD
    gcloud compute tpus tpu-vm scp /tmp/r23d_jax.tar.gz "$TPU": --zone="$ZONE" --worker=all
    everywhere all "set -e; tar xzf r23d_jax.tar.gz; cd r23d_jax
      if [ '${SHARE:-}' ] && ! mountpoint -q /mnt/share; then
        sudo apt-get install -y nfs-common; sudo mkdir -p /mnt/share; sudo mount '${SHARE:-}' /mnt/share
      fi
      command -v uv || curl -LsSf https://astral.sh/uv/install.sh | sh
      ~/.local/bin/uv venv --python=3.12 .venv
      ~/.local/bin/uv pip install -r requirements-cpu.txt -r requirements-remote.txt 'jax[tpu]'"
    ;;
  train)
    printf -v arguments '%q ' "$@"
    everywhere all "cd r23d_jax && echo \$\$ >run.pid && exec .venv/bin/python launch.py $arguments --distributed"
    ;;
  stop)
    everywhere 0 "kill -TERM \$(cat r23d_jax/run.pid)"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$TPU" --zone="$ZONE"
    ;;
  *)
    echo "usage: $0 create|install|train|stop|delete" >&2
    exit 2
    ;;
esac
