#!/bin/sh
# The whole comparison on one GPU in under eight minutes: ours against torch eager (AMP), channels_last_3d and compiled.
# Needs python with jax (CUDA), flax, optax and torch (CUDA); no TensorFlow, no ml-collections, no network.
#   sh benchmarks/gpu.sh [FOLDER] [further arguments of benchmarks.gpu]
set -eu
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
[ $# -gt 0 ] && shift
exec "${PYTHON:-python3}" -m benchmarks.gpu --out "$out" --minutes 7.5 "$@"
