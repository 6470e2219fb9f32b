"""DeepMind's I3D: its TensorFlow checkpoint against its definition (kinetics-i3d, i3d.py), run by TensorFlow itself."""

from pathlib import Path

import jax
import numpy as np
import pytest

import r23d_jax
from r23d_jax import models
from r23d_jax.weights.state_dicts import convert, to_arrays
from r23d_jax.weights.tables import ConversionError

tf = pytest.importorskip("tensorflow")

MIXED = {
    "3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64), "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64), "4d": (128, 128, 256, 24, 64, 64), "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128), "5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


class DeepMind:
    """Runs I3D and makes its variables on the way, under the checkpoint's names."""

    def __init__(self, scope: str):
        self.scope, self.variables = scope, {}
        self.rng = np.random.default_rng(0)

    def variable(self, name: str, value: np.ndarray) -> np.ndarray:
        return self.variables.setdefault(f"{self.scope}/{name}", value.astype(np.float32))

    def unit(self, x, name: str, leaving: int, size: int, stride: int = 1):
        shape = (size, size, size, x.shape[-1], leaving)
        kernel = self.rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        x = tf.nn.conv3d(x, self.variable(f"{name}/conv_3d/w", kernel), [1, stride, stride, stride, 1], "SAME")
        one = (1, 1, 1, 1, leaving)
        beta = self.variable(f"{name}/batch_norm/beta", self.rng.standard_normal(one) * 0.1)
        mean = self.variable(f"{name}/batch_norm/moving_mean", self.rng.standard_normal(one) * 0.1)
        variance = self.variable(f"{name}/batch_norm/moving_variance", self.rng.uniform(0.5, 1.5, one))
        return tf.nn.relu(tf.nn.batch_normalization(x, mean, variance, beta, None, 1e-3))

    def mixed(self, x, suffix: str):
        c, name = MIXED[suffix], f"Mixed_{suffix}"
        b0 = self.unit(x, f"{name}/Branch_0/Conv3d_0a_1x1", c[0], 1)
        b1 = self.unit(x, f"{name}/Branch_1/Conv3d_0a_1x1", c[1], 1)
        b1 = self.unit(b1, f"{name}/Branch_1/Conv3d_0b_3x3", c[2], 3)
        b2 = self.unit(x, f"{name}/Branch_2/Conv3d_0a_1x1", c[3], 1)
        b2 = self.unit(b2, f"{name}/Branch_2/Conv3d_0{'a' if suffix == '5b' else 'b'}_3x3", c[4], 3)
        b3 = tf.nn.max_pool3d(x, [1, 3, 3, 3, 1], [1, 1, 1, 1, 1], "SAME")
        return tf.concat([b0, b1, b2, self.unit(b3, f"{name}/Branch_3/Conv3d_0b_1x1", c[5], 1)], 4)

    def __call__(self, x, num_classes: int):
        x = self.unit(x, "Conv3d_1a_7x7", 64, 7, 2)
        x = tf.nn.max_pool3d(x, [1, 1, 3, 3, 1], [1, 1, 2, 2, 1], "SAME")
        x = self.unit(self.unit(x, "Conv3d_2b_1x1", 64, 1), "Conv3d_2c_3x3", 192, 3)
        x = tf.nn.max_pool3d(x, [1, 1, 3, 3, 1], [1, 1, 2, 2, 1], "SAME")
        x = self.mixed(self.mixed(x, "3b"), "3c")
        x = tf.nn.max_pool3d(x, [1, 3, 3, 3, 1], [1, 2, 2, 2, 1], "SAME")
        for letter in "bcdef":
            x = self.mixed(x, f"4{letter}")
        x = tf.nn.max_pool3d(x, [1, 2, 2, 2, 1], [1, 2, 2, 2, 1], "SAME")
        x = self.mixed(self.mixed(x, "5b"), "5c")
        x = tf.nn.avg_pool3d(x, [1, 2, 7, 7, 1], [1, 1, 1, 1, 1], "VALID")
        kernel = self.variable("Logits/Conv3d_0c_1x1/conv_3d/w", self.rng.standard_normal((1, 1, 1, 1024, num_classes)))
        bias = self.variable("Logits/Conv3d_0c_1x1/conv_3d/b", self.rng.standard_normal(num_classes))
        return tf.reduce_mean(tf.squeeze(tf.nn.conv3d(x, kernel, [1] * 5, "VALID") + bias, [2, 3]), axis=1)


def save(path: Path, variables: dict[str, np.ndarray]) -> None:
    names = list(variables)
    tf.raw_ops.SaveV2(
        prefix=str(path), tensor_names=names, shape_and_slices=[""] * len(names), tensors=[variables[n] for n in names]
    )


@pytest.mark.parametrize(("scope", "channels"), [("RGB", 3), pytest.param("Flow", 2, marks=pytest.mark.long)])
@pytest.mark.slow
def test_logits_equal_tensorflows(scope: str, channels: int, tmp_path: Path) -> None:
    """Odd and even sizes meet SAME at every stride; 20 frames leave three steps, so the mean of windows shows."""
    x = np.random.default_rng(1).standard_normal((1, 20, 222, 222, channels)).astype(np.float32)
    network = DeepMind(f"{scope}/inception_i3d")
    want = network(tf.constant(x), 7).numpy()
    save(tmp_path / "model.ckpt", network.variables)
    converted = convert(tmp_path / "model.ckpt")
    assert (converted.source, converted.name, converted.num_classes) == ("i3d_deepmind", "i3d", 7)
    assert converted.model.in_channels == channels and len(converted.preprocessing.mean) == channels
    logits = jax.jit(lambda model, x: model(x))(converted.model, x)
    # float32 through 22 layers: 1e-4 of the logits' scale
    np.testing.assert_allclose(logits, want, atol=1e-4 * float(np.abs(want).max()))
    assert converted.model.spec == models.model_spec("i3d")
    state = to_arrays(converted.model, "i3d_deepmind")
    for name, value in state.items():
        np.testing.assert_array_equal(value, network.variables[f"{scope}/inception_i3d/{name}"])


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "model.ckpt", {"RGB/inception_i3d/Conv3d_1a_7x7/conv_3d/w": np.zeros(10, np.float32)})
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"model\.ckpt: not a whole TensorFlow checkpoint"):
        r23d_jax.read_tensorflow(tmp_path / "model.ckpt")
    with pytest.raises(ConversionError, match=r"model\.ckpt\.data-00000-of-00001: is empty \(0 bytes\)"):
        r23d_jax.from_torch(tmp_path / "model.ckpt")
    for file in tmp_path.iterdir():
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConversionError, match=r"model\.ckpt\.index: is a Git LFS pointer; the weights were not downlo"):
        r23d_jax.from_torch(tmp_path / "model.ckpt")
