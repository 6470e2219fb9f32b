"""ONNX files, run by onnxruntime: the same logits for any batch."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

HOW = "pip install -r requirements-onnx.txt"
pytest.importorskip("torch", reason=HOW)
pytest.importorskip("onnxscript", reason=HOW)
onnxruntime = pytest.importorskip("onnxruntime", reason=HOW)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from r23d_jax.config import DataConfig, HeadConfig, preprocessing  # noqa: E402
from r23d_jax.models.functional import split_model  # noqa: E402
from r23d_jax.models.preprocess import prepare_video  # noqa: E402
from r23d_jax.weights import portable  # noqa: E402
from tests.weights.random_networks import trained  # noqa: E402

pytestmark = pytest.mark.parity
AVERAGE = HeadConfig(kind="avgpool", dropout=0.0)
VIT = HeadConfig(kind="vit", num_heads=2, num_layers=1)
POOL = HeadConfig(kind="attention_pool", num_heads=2, hidden_dim=16, tokens="time")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "head", "frames", "size"),
    [
        ("r2plus3d_10", VIT, 4, 32),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("r2plus1d_18", AVERAGE, 4, 32),
                ("mc3_18", POOL, 4, 32),
                ("r3d_18", HeadConfig(kind="none"), 4, 32),
                ("ir_csn_50", AVERAGE, 4, 32),
                ("i3d", AVERAGE, 16, 64),
                ("i3d_gamma", VIT, 16, 64),
                ("s3d_g", POOL, 16, 64),
            )
        ),
    ],
)
def test_onnx(
    name: str, head: HeadConfig, frames: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block of docs/converting.md that reads such a file, run as it stands, with three clips."""
    pre = preprocessing(DataConfig(num_frames=frames, crop_size=size, short_side=size, input="rgb_diff"))
    narrow = {} if "3d_g" in name or name == "i3d" else {"widths": (8, 12, 16, 24)}
    model = trained(name, head=head, num_frames=frames, crop_size=size, **narrow)
    monkeypatch.chdir(tmp_path)
    assert portable.write_onnx(Path("r23d.onnx"), model, head, pre, {"class_names": list("abcdefg")}) < 1e-4
    assert json.loads(Path("r23d.onnx.json").read_text())["class_names"] == list("abcdefg")
    video = np.random.default_rng(1).integers(0, 256, (3, frames + 1, size, size, 3), np.uint8)
    network, params, batch_stats = split_model(model)
    want = np.asarray(jax.jit(network.apply_eval)(params, batch_stats, prepare_video(jnp.asarray(video), pre)))
    if head.kind == "none":
        (found,) = onnxruntime.InferenceSession("r23d.onnx").run(None, {"video": video})
    else:
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/converting.md").read_text(), re.DOTALL)
        (code,) = [block for block in blocks if "r23d.onnx" in block]
        names = {"clips": video}
        exec(code, names)
        found = names["logits"]
        assert names["classes"] == ["abcdefg"[k] for k in want.argmax(axis=1)]
    # float32 through a whole network
    np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max())
