"""A trained network as a file that runs without this code: StableHLO, or a TensorFlow SavedModel.

Both take the bytes of clips, (B, T, H, W, C) uint8 for any B, and give (B, num_classes) float32 logits; normalization
is inside. T is `Preprocessing.read_frames`.
"""

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r23d_jax.config import Preprocessing, UserError
from r23d_jax.models.convolution import use_formulation
from r23d_jax.models.functional import split_model
from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.runtime import disk

PLATFORMS = ("cpu", "cuda", "tpu")
META = "r23d_jax.json"  # in a SavedModel's folder; beside a StableHLO file it is called <file>.json
# The file may use other convolutions: float32 rounding through the network
TOLERANCE = 1e-3


class ExportError(UserError):
    """A network could not be written in a portable form; the message says why."""


def write_stablehlo(path: Path, model: VideoNetwork, pre: Preprocessing, meta: Mapping[str, Any]) -> float:
    """Writes `jax.export`'s serialized StableHLO for CPU, CUDA and TPU, reads it again and compares logits.

    Args:
      path: of the file; `<path>.json` gets `meta`.
      model: the network.
      pre: its preprocessing.
      meta: JSON values: class names, preprocessing.

    Returns:
      The largest difference of logits after reading it again, relative to the largest logit.

    Raises:
      ExportError: if the file computes something else; nothing is kept then.
    """
    apply = _function(model, pre)
    (batch,) = jax.export.symbolic_shape("b")
    spec = jax.ShapeDtypeStruct((batch, *_clip_shape(model, pre)), np.uint8)
    with use_formulation("direct"):  # the formulation for CPUs would be traced into the file for all platforms
        data = jax.export.export(jax.jit(apply), platforms=PLATFORMS)(spec).serialize()
    try:
        with disk.replacing(path) as partial:
            partial.write_bytes(data)
            again = jax.export.deserialize(bytearray(partial.read_bytes()))
            error = _compare(path, model, pre, apply, again.call)
        disk.write_atomically(path.with_name(f"{path.name}.json"), json.dumps(dict(meta), indent=2) + "\n")
    except OSError as error:
        if isinstance(error, disk.WriteError):
            raise
        raise ExportError(f"{path}: cannot be written ({error})") from error
    return error


def write_savedmodel(path: Path, model: VideoNetwork, pre: Preprocessing, meta: Mapping[str, Any]) -> float:
    """Writes a TensorFlow SavedModel with one signature, `video` -> `logits`; otherwise as `write_stablehlo`.

    Raises:
      ExportError: if TensorFlow is missing, or cannot run what this version of jax writes.
    """
    try:
        import tensorflow as tf
        from jax.experimental import jax2tf
    except ImportError as error:
        raise ExportError(f"{path}: writing a SavedModel needs tensorflow and jax2tf ({error})") from None
    apply = _function(model, pre)
    shape = _clip_shape(model, pre)
    with use_formulation("direct"):
        converted = jax2tf.convert(
            apply, polymorphic_shapes=["(b, ...)"], with_gradient=False, native_serialization_platforms=PLATFORMS
        )
        module: Any = tf.Module()
        signature = tf.TensorSpec((None, *shape), tf.uint8, name="video")
        module.serve = tf.function(
            lambda video: {"logits": converted(video)}, input_signature=[signature], autograph=False
        )
        with disk.replacing(path) as partial:
            with contextlib.redirect_stderr(io.StringIO()):  # TensorFlow narrates where it writes
                tf.saved_model.save(module, str(partial), signatures=module.serve)
            again = tf.saved_model.load(str(partial))

            def run(video: np.ndarray) -> np.ndarray:
                try:
                    return again.signatures["serving_default"](video=tf.constant(video))["logits"].numpy()
                except tf.errors.OpError as error:
                    raise ExportError(
                        f"{path}: TensorFlow {tf.__version__} cannot run what jax {jax.__version__} writes "
                        f"({str(error).splitlines()[0][:200]}); write .stablehlo, or install jax<0.11"
                    ) from None

            error = _compare(path, model, pre, apply, run)
            (partial / META).write_text(json.dumps(dict(meta), indent=2) + "\n", encoding="utf-8")
    return error


def _function(model: VideoNetwork, pre: Preprocessing) -> Callable[[jax.Array], jax.Array]:
    network, params, batch_stats = split_model(model)
    return lambda video: network.apply_eval(params, batch_stats, prepare_video(video, pre))


def _clip_shape(model: VideoNetwork, pre: Preprocessing) -> tuple[int, int, int, int]:
    return pre.read_frames, pre.crop_size, pre.crop_size, model.in_channels


def _compare(path: Path, model: VideoNetwork, pre: Preprocessing, apply: Callable, again: Callable) -> float:
    video = np.random.default_rng(0).integers(0, 256, (2, *_clip_shape(model, pre)), np.uint8)
    expected, found = np.asarray(jax.jit(apply)(video)), np.asarray(again(video))
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise ExportError(f"{path}: the file gives other logits ({error:.1e} of the largest); nothing was kept")
    return error
