"""What a process is prepared with before jax is imported."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Minor page faults of ten arrays of 40 MiB, each written and freed: more than glibc keeps by itself.
FAULTS = """
import ctypes, resource, sys
from r23d_jax.runtime import backend
backend.prepare_process()
libc = ctypes.CDLL(None)
assert libc.prctl(41, 1, 0, 0, 0) == 0  # PR_SET_THP_DISABLE: a huge page would be one fault where there are 512
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 40 << 20
def use():
    array = libc.malloc(size)
    ctypes.memset(array, 1, size)
    libc.free(array)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / size)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")


def rounds_from_the_system(**variables: str) -> float:
    """How many of ten arrays were taken from the system anew."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    kept.pop("LD_PRELOAD", None)  # another malloc
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, cwd=ROOT, env=kept | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@glibc
def test_freed_memory_is_used_again() -> None:
    assert rounds_from_the_system() < 1


@glibc
def test_the_users_own_settings_of_malloc_stay() -> None:
    assert rounds_from_the_system(MALLOC_TOP_PAD_="131072") > 9
