"""Weights in a TensorFlow checkpoint, the format of DeepMind's I3D; the rest of `weights/` needs no TensorFlow."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from r23d_jax.weights.tables import ConversionError

# Slots of optimizers, which are named like the variables they belong to.
_NOT_WEIGHTS = ("Momentum", "Adam", "Adam_1", "ExponentialMovingAverage", "global_step")


def read_tensorflow(path: Path | str | os.PathLike) -> dict[str, np.ndarray]:
    """All variables of a checkpoint.

    Args:
      path: the name before `.index`, or the `.index` file.

    Raises:
      ConversionError: if TensorFlow is missing or the checkpoint is damaged.
    """
    prefix = str(path).removesuffix(".index")
    tf = import_tensorflow(path)
    try:
        reader = tf.train.load_checkpoint(prefix)
        names = [name for name in reader.get_variable_to_shape_map() if name.split("/")[-1] not in _NOT_WEIGHTS]
        return {name: reader.get_tensor(name) for name in sorted(names)}
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        raise ConversionError(f"{path}: not a whole TensorFlow checkpoint ({str(error).splitlines()[0]})") from None


def import_tensorflow(path: Path | str | os.PathLike) -> Any:
    """TensorFlow; raises ConversionError, naming the file that needs it, if it is missing."""
    try:
        import tensorflow as tf
    except ImportError:
        raise ConversionError(f"{path}: reading a TensorFlow checkpoint needs tensorflow-cpu") from None
    return tf
