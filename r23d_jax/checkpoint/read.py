"""Reads the network in any file or folder of weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from r23d_jax.checkpoint.checkpoint import load_checkpoint
from r23d_jax.config import UserError, nearest
from r23d_jax.runtime.program import command
from r23d_jax.weights import saved
from r23d_jax.weights.matching import is_2d
from r23d_jax.weights.pretrained import PRETRAINED, pretrained_name, read_pretrained
from r23d_jax.weights.state_dicts import Converted, convert, read_arrays
from r23d_jax.weights.tables import ConversionError


def read_network(
    path: Path,
    inflated: Callable[[dict[str, np.ndarray]], Converted],
    *,
    name: str | None = None,
    source: str | None = None,
    log: Callable[[str], None] = print,
) -> Converted:
    """The network in a run's folder, a checkpoint, a saved folder, a file of weights of any kind, or under a name.

    It computes in float32, also if its run was trained in bfloat16.

    Args:
      path: of the folder or file; or a name, as `pretrained_name` takes it.
      inflated: makes a video network from the weights of an image network.
      name: the expected network; None accepts any.
      source: the code base, if names do not tell; a key of `weights.sources.SOURCES`.
      log: takes messages about damaged checkpoints.

    Raises:
      UserError: if it cannot be read, or holds another network.
    """
    known = pretrained_name(path)
    if known or saved.is_saved(path):
        found = read_pretrained(known, log) if known else saved.read(path)
        if name not in (None, found.name):
            raise UserError(f"{path} is {found.name}, not {name}")
        return found
    if path.is_dir():
        loaded = load_checkpoint(path, log=log, compute_dtype="float32")  # as networks in files
        if name not in (None, loaded.name):
            raise UserError(f"{loaded.path} is {loaded.name}, not {name}")
        chosen = f", {loaded.chosen}" if loaded.chosen else ""
        return Converted(
            model=loaded.model,
            config=loaded.config.model,
            num_classes=len(loaded.class_names),
            source="r23d_jax",
            class_names=loaded.class_names,
            preprocessing=loaded.preprocessing,
            origin=f"{loaded.path}: a checkpoint of r23d_jax, step {loaded.step:,}{chosen}",
            assumed=False,
            views=loaded.config.eval,
            # step 0 of unknown videos: converted from another program, with a config of defaults
            data=loaded.config.data if loaded.step or loaded.videos else None,
            videos=loaded.videos,
            init_videos=loaded.init_videos,
        )
    if not path.exists() and not path.with_name(f"{path.name}.index").is_file():
        raise UserError(
            f"{path}: there is no such file or folder, and no published weights; {nearest(str(path), PRETRAINED)}"
        )
    content = read_arrays(path)
    try:
        converted = inflated(content.arrays) if is_2d(content.arrays) else convert(content, name, source)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from None
    return dataclasses.replace(converted, origin=f"{path}: {converted.origin}")


def refuse_image_network(path: Path | str) -> Callable[[dict[str, np.ndarray]], Converted]:
    """An `inflated` for `read_network` that raises UserError: what was asked for needs a video network."""

    def refuse(arrays: dict[str, np.ndarray]) -> Converted:
        del arrays
        raise UserError(
            f"{path}: an image network; make a video network of it first: "
            f"{command('convert')} --from {path} --to FOLDER --model NAME --inflate repeat"
        )

    return refuse
