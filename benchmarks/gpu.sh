#!/bin/sh
# The comparison with torch.compile on one GPU stopped after four minutes: the training step of three networks, every form of
# our convolutions, the most expensive kernels, and, where TensorFlow is installed, the main job from disk.
# Needs python with jax (CUDA), flax, optax, jaxtyping and torch (CUDA); no network.
#   sh benchmarks/gpu.sh [FOLDER] [further arguments of benchmarks.gpu]
set -eu
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
[ $# -gt 0 ] && shift
exec "${PYTHON:-python3}" -m benchmarks.gpu --out "$out" "$@"
