"""Eight virtual CPU devices, strict numerics, and the marks of tests that need what this machine may lack."""

import contextlib
import gc
import importlib.metadata
import os
from pathlib import Path

# Tests compile hundreds of programs and run each a few times, so compiling must be quick, not what it makes. Without
# optimization a program takes a third as long, and a quarter of that without fusion emitters. jaxlib 0.12 has no choice
# of emitters, and ends the process for a flag that it does not know.
os.environ["JAX_PLATFORMS"] = os.environ.get("R23D_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    + ("--xla_cpu_use_fusion_emitters=false " if importlib.metadata.version("jaxlib").startswith("0.10.") else "")
    + os.environ.get("XLA_FLAGS", "")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# Threads of scikit-learn and torch wait for each other in loops: where other processes run, ten times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # as in backend.prepare_process

# It comes with torch for CUDA, and ends the process if TensorFlow was imported before it
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_numpy_rank_promotion", "raise")

# A loaded machine is no fault of a test, so no example has a deadline.
hypothesis.settings.register_profile("quick", max_examples=25, deadline=None)
hypothesis.settings.register_profile("full", max_examples=300, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

REAL_FOLDERS = ("ucf5", "ucf101_splits", "odd_videos")
LONGEST = ("test_parity.py", "test_step.py", "test_loop.py", "test_install.py")  # half a minute and more


@pytest.fixture
def real_data() -> Path:
    """Folder of real UCF101 clips and lists; tests that use it are marked `real_clips`."""
    return Path(os.environ["R23D_TEST_DATA"]).resolve()


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests that compile the same program take it from a folder of this process."""
    folder = str(tmp_path_factory.mktemp("programs"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # keeps trainings from choosing a folder in their workdir
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # what was compiled while tests were collected has decided that there is none


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests see no published weights that somebody has downloaded on this machine, and `new` would use."""
    os.environ["R23D_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def pytest_configure() -> None:
    data = os.environ.get("R23D_TEST_DATA")
    missing = [name for name in REAL_FOLDERS if data and not Path(data, name).is_dir()]
    if missing:
        raise pytest.UsageError(f"R23D_TEST_DATA={data}: has no folder {', '.join(missing)}; correct it or unset it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # In this order .ci/run divides files among processes: those of the longest tests first, then the other slow ones,
    # and of these the comparisons with torch.
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("parity")}
    items.sort(
        key=lambda item: (item.path.name not in LONGEST, item.path not in slow, item.path.parent.name != "weights")
    )
    for item in items:
        if item.get_closest_marker("real_clips") and not os.environ.get("R23D_TEST_DATA"):
            reason = f"set R23D_TEST_DATA to a folder with {', '.join(REAL_FOLDERS)} (see the head of .ci/run)"
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_collection_finish() -> None:
    """Full garbage collections, which took a tenth of the time, no longer look through all that is imported by now."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session")
def torchvision_video():
    """`torchvision.models.video`, which imports beside a CPU torch once two operators that it expects are declared."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    try:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # a torchvision with its compiled part has declared them already
        pass
    return pytest.importorskip(
        "torchvision.models.video",
        reason="torchvision is not installed: pip install --no-deps torchvision==0.28.0",
        exc_type=ImportError,
    )
