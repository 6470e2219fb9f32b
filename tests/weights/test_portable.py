"""Networks as files that run without this code: the same logits for any batch."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r23d_jax import config
from r23d_jax.models.functional import split_model
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.weights import portable
from tests.training.tiny import tiny_config
from tests.weights.random_networks import trained

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


def test_savedmodel(model, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    path = tmp_path / "model.savedmodel"
    path.mkdir()  # an older one, which is replaced
    (path / "old").touch()
    try:
        portable.write_savedmodel(path, model, PRE, {"class_names": ["a"]})
    except portable.ExportError as error:
        if "cannot run what jax" not in str(error):
            raise
        pytest.skip(str(error))
    assert not (path / "old").exists() and json.loads((path / portable.META).read_text()) == {"class_names": ["a"]}
    again = tf.saved_model.load(str(path)).signatures["serving_default"]
    want = expected(model, 3)
    np.testing.assert_allclose(again(video=tf.constant(video(3)))["logits"], want, atol=1e-4 * np.abs(want).max())


def test_what_computes_something_else_is_not_kept(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(data: bytearray):
        class Wrong:
            call = staticmethod(lambda video: np.zeros((len(video), 7), np.float32))

        return Wrong

    monkeypatch.setattr(jax.export, "deserialize", wrong)
    with pytest.raises(portable.ExportError, match=r"model\.stablehlo: the file gives other logits"):
        portable.write_stablehlo(tmp_path / "model.stablehlo", model, PRE, {})
    assert not list(tmp_path.iterdir())
