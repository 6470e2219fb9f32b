"""Eight virtual CPU devices, strict numerics, and the marks that need something this machine may lack."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("R23D_TEST_PLATFORM", "cpu")
# Tests compile hundreds of programs and run each a few times: compiled without optimization they take a third as long.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """Folder of real UCF101 clips; tests that use it are marked `shared`."""
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="needs the real clips, which lie in ../shared/data"))
        if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


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
