"""Prepares the process before jax is imported: its backend, its output, and its memory."""

import ctypes
import importlib.util
import io
import os
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def prepare_process() -> None:
    """Must be called before the first import of jax.

    Without a usable NVIDIA GPU, `jax[cuda12]` prints ten lines of a CUDA error before it uses the CPU. This selects the
    CPU there, unless the user has set JAX_PLATFORMS. It also makes glibc keep freed memory, unless MALLOC_... or
    GLIBC_TUNABLES are set.
    """
    # At 2 TensorFlow prints a line for every damaged JPEG each time it is read, beside the error that it raises.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow only reads data here, which oneDNN does not speed up, and oneDNN prints a line at every log level.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # Otherwise TensorFlow imports Keras, only to see where it is, which takes a third of the time.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("KERAS_HOME", "/dev/null/keras")  # TensorFlow's own old Keras writes ~/.keras if it can
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):  # of MLflow and others
        os.environ.setdefault(name, "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # printed file names need not be text
    if not os.environ.get("JAX_PLATFORMS") and _only_cpu():
        os.environ["JAX_PLATFORMS"] = "cpu"
    _keep_memory()


def avoid_cuda_errors() -> None:
    """Selects the CPU in an imported jax that has the CUDA plugin and no usable device, as `prepare_process` does.

    A choice of the user stays, in the environment or in jax's config. Nothing else of the process changes.
    """
    jax = sys.modules.get("jax")
    if jax is not None and not jax.config.jax_platforms and _only_cpu():
        jax.config.update("jax_platforms", "cpu")


def _keep_memory() -> None:
    """Makes glibc keep freed memory for the next frames and batches.

    By default it returns the memory of a batch to the system, which zeroes every page again for the next batch
    (docs/performance.md has the cost). Pieces of more than 64 MiB from threads other than the main one, such as those
    of XLA's training step on a CPU, are still returned. If they were kept, the process would grow, because glibc does
    not reuse freed space for an aligned array of the same size.
    """
    if sys.platform != "linux" or any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def _only_cpu() -> bool:
    """Whether jax would try CUDA in vain."""
    return _cuda_plugin() and not _cuda_works() and not _tpu()


def _cuda_plugin() -> bool:
    """Whether jax would try CUDA."""
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def _cuda_works() -> bool:
    """Asks the driver, as jax's plugin does: a library or a device file alone does not prove a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _tpu() -> bool:
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
