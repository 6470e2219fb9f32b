"""Prepares the process before jax is imported: its backend, what it prints, and how it keeps memory."""

import ctypes
import importlib.util
import io
import os
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def prepare_process() -> None:
    """Call before the first import of jax.

    `jax[cuda12]` on a machine without a usable NVIDIA GPU works, after it has printed ten lines of a CUDA error. Where
    that would happen, and the user has not set JAX_PLATFORMS, this asks for the CPU outright. With glibc, freed memory
    stays with the process; where MALLOC_... or GLIBC_TUNABLES are set, they are left to decide.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow only reads data here, for which oneDNN does nothing; but on processors with AVX512_VNNI it says that it
    # is on, whatever the log level.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files, which are printed, need not be text
    if not os.environ.get("JAX_PLATFORMS") and _cuda_plugin() and not _cuda_works() and not _tpu():
        os.environ["JAX_PLATFORMS"] = "cpu"
    _keep_memory()


def _keep_memory() -> None:
    """Has glibc keep freed memory, which the next frames and batches use, instead of giving it back to the system.

    By itself it gives back what it took for a batch, and what is free at the end of its heaps, and the system zeroes it
    anew, page by page, for the next one; docs/performance.md says what that costs. What a thread other than the main
    one takes in pieces of more than 64 MiB, such as XLA for a training step on a CPU, still goes back. Kept as well, it
    would let the process grow, because glibc does not take an aligned array from where one of the same size was freed.
    """
    if sys.platform != "linux" or any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def _cuda_plugin() -> bool:
    """Whether jax would try CUDA."""
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def _cuda_works() -> bool:
    """Asks the driver as jax's plugin does: a library or a device file alone does not make a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _tpu() -> bool:
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
