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


@pytest.mark.slow
def test_importing_tensorflow_imports_no_keras_and_writes_nothing_at_home(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    words = (
        "import sys; from r23d_jax.runtime import backend; backend.prepare_process(); import tensorflow; "
        "assert 'keras' not in sys.modules"
    )
    kept = {name: value for name, value in os.environ.items() if "KERAS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", words], cwd=ROOT, env=kept | {"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0 and not (tmp_path / ".keras").exists(), done.stderr


# A CUDA plugin that finds no driver, as pip install -r requirements.txt leaves it on a machine without a GPU
PLUGIN = """
import jax
def initialize():
    if not jax.config.jax_platforms:  # the real one, too, tries CUDA only if nothing else was chosen
        raise RuntimeError('operation cuInit(0) failed: Unknown CUDA error 303')
"""
BUILD = """
import sys, jax, r23d_jax
from flax import nnx
model = r23d_jax.create_model('r3d_10', num_classes=2, widths=(2, 2, 2, 2), rngs=nnx.Rngs(0))
print(jax.config.jax_platforms, jax.devices()[0].platform)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "platforms", "printed", "quiet"),
    [
        (BUILD, "", "cpu cpu", True),
        (BUILD, "cpu", "cpu cpu", True),  # the user's choice
        ("import jax\nprint(jax.devices()[0].platform)", "", "cpu", False),  # what is avoided
        ("import jax, r23d_jax\nprint([jax.config.jax_platforms])", "", "['']", True),  # importing changes nothing
    ],
)
def test_a_cuda_plugin_without_a_gpu_prints_no_errors(
    code: str, platforms: str, printed: str, quiet: bool, tmp_path: Path
) -> None:
    (tmp_path / "jax_plugins" / "xla_cuda12").mkdir(parents=True)
    (tmp_path / "jax_plugins" / "xla_cuda12" / "__init__.py").write_text(PLUGIN)
    (tmp_path / "jax_cuda12_plugin").mkdir()
    (tmp_path / "jax_cuda12_plugin" / "__init__.py").touch()
    (tmp_path / "libcuda.so.1").touch()  # found first, and no library: also on a machine with a GPU
    environment = os.environ | {
        "JAX_PLATFORMS": platforms,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "LD_LIBRARY_PATH": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed
    assert ("Jax plugin configuration error" not in done.stderr) == quiet
