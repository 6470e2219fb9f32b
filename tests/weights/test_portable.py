"""Networks as files that run without this code: the same logits for any batch."""

import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r23d_jax import config
from r23d_jax.commands import export
from r23d_jax.models.functional import split_model
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.weights import portable
from tests.training.tiny import tiny_config
from tests.weights.random_networks import trained

ROOT = Path(__file__).parents[2]
CFG = tiny_config("r2plus1d", "vit")
CFG.data.input = "rgb_diff"
PRE = config.preprocessing(CFG.data)


@pytest.fixture(scope="module")
def model():
    return trained("r2plus1d_10", widths=CFG.model.widths, head=CFG.model.head, num_frames=4, crop_size=16)


def video(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, 5, 16, 16, 3)).astype(np.uint8)


def expected(model, batch: int) -> np.ndarray:
    network, params, batch_stats = split_model(model)
    return np.asarray(jax.jit(network.apply_eval)(params, batch_stats, prepare_video(jnp.asarray(video(batch)), PRE)))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_stablehlo(model, batch: int, tmp_path: Path) -> None:
    path = tmp_path / "model.stablehlo"
    assert portable.write_stablehlo(path, model, PRE, {"class_names": ["a"]}) < 1e-4
    assert json.loads((tmp_path / "model.stablehlo.json").read_text()) == {"class_names": ["a"]}
    again = jax.export.deserialize(bytearray(path.read_bytes()))
    assert set(again.platforms) == {"cpu", "cuda", "tpu"}
    want = expected(model, batch)
    # two formulations of the same convolutions in float32
    np.testing.assert_allclose(again.call(video(batch)), want, atol=1e-4 * np.abs(want).max())


def test_frames_and_differences_are_made_inside(tmp_path: Path) -> None:
    """The file takes frames of three channels, one more than the network reads."""
    pre = config.preprocessing(config.DataConfig(num_frames=4, short_side=16, crop_size=16, input="rgb_and_diff"))
    model = trained("f_r2d_10", widths=CFG.model.widths, in_channels=6, crop_size=16)
    assert portable.write_stablehlo(tmp_path / "model.stablehlo", model, pre, {"class_names": ["a"]}) < 1e-4
    again = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    assert [aval.shape[1:] for aval in again.in_avals] == [(5, 16, 16, 3)]


def test_savedmodel(model, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    path = tmp_path / "model.savedmodel"
    path.mkdir()  # an older one, which is replaced
    (path / "old").touch()
    assert portable.write_savedmodel(path, model, PRE, {"class_names": ["a"]}) < 1e-4
    assert not (path / "old").exists() and json.loads((path / portable.META).read_text()) == {"class_names": ["a"]}
    again, want = tf.saved_model.load(str(path)), expected(model, 3)
    for logits in (again(video(3)), again.signatures["serving_default"](video=tf.constant(video(3)))["logits"]):
        np.testing.assert_allclose(logits, want, atol=1e-4 * np.abs(want).max())


def test_tflite(model, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    path = tmp_path / "model.tflite"
    assert portable.write_tflite(path, model, PRE, {"class_names": ["a"]}) < 1e-4
    assert json.loads((tmp_path / "model.tflite.json").read_text()) == {"class_names": ["a"]}
    with pytest.warns(UserWarning, match="tf.lite.Interpreter is deprecated"):
        again = tf.lite.Interpreter(model_path=str(path)).get_signature_runner()
    want = expected(model, 1)
    np.testing.assert_allclose(again(video=video(1))["logits"], want, atol=1e-4 * np.abs(want).max())


def test_what_tflite_has_no_operator_for(tmp_path: Path) -> None:
    """Its convolutions over space and time have no groups."""
    pytest.importorskip("tensorflow")
    csn = trained("ip_csn_50", widths=CFG.model.widths, num_frames=4, crop_size=16)
    with pytest.raises(portable.ExportError, match=r"a\.tflite: TensorFlow .* cannot convert .*; write \.onnx"):
        portable.write_tflite(tmp_path / "a.tflite", csn, PRE, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "absent", "message"),
    [
        ("a.savedmodel", "tensorflow", "a SavedModel needs tensorflow .*: pip install tensorflow-cpu"),
        ("a.tflite", "tensorflow", "a LiteRT file needs tensorflow .*: pip install tensorflow-cpu"),
        ("a.onnx", "onnxscript", "ONNX needs torch, onnxscript and onnxruntime .*: pip install torch onnxscript"),
    ],
)
def test_a_missing_package_is_named_before_any_work(
    name: str, absent: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    if absent == "onnxscript":
        monkeypatch.setitem(sys.modules, "onnxruntime", sys)
    with pytest.raises(portable.ExportError, match=f"{re.escape(name)}: writing {message}"):
        export.check_target(tmp_path / name)


@pytest.mark.parametrize("suffix", ["stablehlo", "savedmodel", "tflite"])
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
@pytest.mark.slow
def test_the_example_of_the_documentation(suffix: str, model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block of docs/converting.md that reads such a file, run as it stands."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/converting.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if f"r23d.{suffix}" in block]
    monkeypatch.chdir(tmp_path)
    write = getattr(portable, f"write_{suffix}")
    write(Path(f"r23d.{suffix}"), model, PRE, {"class_names": list("abcdefg")})
    count = 1 if suffix == "tflite" else 3
    names = {"clips": video(count)}
    exec(code, names)
    want = expected(model, count)
    np.testing.assert_allclose(names["logits"], want, atol=1e-4 * np.abs(want).max())
    assert names["classes"] == ["abcdefg"[k] for k in want.argmax(axis=1)]


def test_what_computes_something_else_is_not_kept(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(data: bytearray):
        class Wrong:
            call = staticmethod(lambda video: np.zeros((len(video), 7), np.float32))

        return Wrong

    monkeypatch.setattr(jax.export, "deserialize", wrong)
    with pytest.raises(portable.ExportError, match=r"model\.stablehlo: the file gives other logits"):
        portable.write_stablehlo(tmp_path / "model.stablehlo", model, PRE, {})
    assert not list(tmp_path.iterdir())
