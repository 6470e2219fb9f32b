"""Chooses jax's backend before jax is imported, so that a machine without a GPU starts without a CUDA traceback."""

import ctypes.util
import os
from pathlib import Path


def quiet_start() -> None:
    """Call before the first import of jax.

    `jax[cuda12]` on a machine without an NVIDIA driver works, after printing ten lines of a CUDA error. Where there is
    neither a driver nor a TPU, and the user has not said otherwise, this asks for the CPU outright.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "JAX_PLATFORMS" not in os.environ and not _has_accelerator():
        os.environ["JAX_PLATFORMS"] = "cpu"


def _has_accelerator() -> bool:
    nvidia = any(Path("/dev").glob("nvidia[0-9]*")) or ctypes.util.find_library("cuda") is not None
    # WSL exposes its GPU as /dev/dxg, TPU machines as /dev/accel* or /dev/vfio/*.
    others = any(Path("/dev").glob("dxg")) or any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return nvidia or others
