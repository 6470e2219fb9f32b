"""Starting a run from other weights: `config.init_from`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r23d_jax.checkpoint.checkpoint import create_configured_model, load_checkpoint
from r23d_jax.checkpoint.state import TrainState
from r23d_jax.config import Config, UserError
from r23d_jax.models.functional import initialize, split_model
from r23d_jax.models.heads import interpolate_positions
from r23d_jax.models.network import VideoNetwork
from r23d_jax.runtime import parallel
from r23d_jax.weights.inflate import inflate
from r23d_jax.weights.matching import is_2d
from r23d_jax.weights.sources import SOURCES
from r23d_jax.weights.state_dicts import convert
from r23d_jax.weights.tables import flatten, listed, part_of
from r23d_jax.weights.tensorflow_checkpoint import read_weights

Tree = dict[str, Any]


class WarmStartError(UserError):
    """The weights that a run should start from do not fit its network; the message lists what differs."""


def check_source(cfg: Config, workdir: Path) -> None:
    """Refuses a run whose weights to start from are not there, before anything else takes time.

    Raises:
      WarmStartError: if `cfg.init_from` does not exist, and there is nothing in `workdir` to resume from.
    """
    path = Path(cfg.init_from)
    there = path.exists() or path.with_name(f"{path.name}.index").is_file()
    if cfg.init_from and not there and not (workdir / "checkpoints").is_dir():
        raise WarmStartError(
            f"config.init_from={cfg.init_from}: there is no such file or folder; give the weights to start from "
            "(--config.init_from=FILE), or --config.init_from= for random ones; docs/converting.md says where they are"
        )


def warm_start(
    cfg: Config, state: TrainState, shardings: TrainState, num_classes: int, log: Callable[[str], None]
) -> TrainState:
    """The state before the first step, with the weights that `cfg.init_from` names instead of random ones.

    The backbone must be the same but for what is in `cfg.init_skip`. Of the head: where its kind differs all of it
    stays random; where the number of classes differs the classifier does; positions are interpolated.

    Args:
      cfg: `init_from` is a file of foreign weights, a run's folder or a checkpoint; image networks are inflated.
      state: fresh.
      shardings: of the state.
      num_classes: of the run.
      log: says what was taken and what was not.

    Raises:
      UserError: if the weights cannot be read or do not fit.
    """
    path = Path(cfg.init_from)
    ours = nnx.eval_shape(lambda: create_configured_model(cfg, num_classes))
    target = split_model(ours)[1:]
    source = _read(cfg, path, num_classes, log)
    _, params, batch_stats = split_model(source)
    skip, notes = _skipped(cfg, (params, batch_stats), target)
    for note in (*notes, *_spec_differences(source, ours)):
        log(f"init: {note}")
    problems = _problems((params, batch_stats), target, skip)
    if problems:
        raise WarmStartError(
            f"config.init_from={cfg.init_from}: these weights are of another network than {cfg.model.name}; set "
            "config.model as they need it, or leave parts random with config.init_skip, e.g. "
            f"--config.init_skip='(\"stage4\",)':\n{listed(problems)}"
        )
    taken = [0, 0]

    def value(source_tree: Tree, state_tree: Tree, sharding_tree: Tree) -> Tree:
        flat = dict(flatten(source_tree))

        def leaf(path: tuple, fresh: jax.Array, sharding: Any) -> jax.Array:
            keys = tuple(entry.key for entry in path)
            taken[1] += fresh.size
            if _is_skipped(keys, skip):
                return fresh
            taken[0] += fresh.size
            found = flat[keys]
            if found.shape != fresh.shape:  # positions, the only leaves that may differ
                found = interpolate_positions(jnp.asarray(found), (fresh.shape[0], fresh.shape[1], fresh.shape[2]))
            return parallel.place(np.asarray(found, np.float32), sharding)

        return jax.tree.map_with_path(leaf, state_tree, sharding_tree)

    new_params = value(params, state.params, shardings.params)
    new_stats = value(batch_stats, state.batch_stats, shardings.batch_stats)
    log(f"init: {taken[0]:,} of {taken[1]:,} values from {cfg.init_from}")
    ema = jax.tree.map(jnp.copy, new_params) if state.ema else {}
    return dataclasses.replace(state, params=new_params, batch_stats=new_stats, ema=ema)


def _read(cfg: Config, path: Path, num_classes: int, log: Callable[[str], None]) -> VideoNetwork:
    if path.is_dir():
        loaded = load_checkpoint(path, log=log)
        log(f"init: {loaded.path}, {loaded.config.model.name}, {loaded.config.model.head.kind} head")
        return loaded.model
    arrays, meta = read_weights(path)
    if is_2d(arrays):
        random = initialize(lambda: create_configured_model(cfg, num_classes))
        log(f"init: {path}, an image network, inflated ({cfg.inflate}); of its head, only what fits is taken")
        return inflate(arrays, random, cfg.inflate, cfg.init_skip)
    converted = convert(arrays, meta=meta)
    classes = f"{converted.num_classes} classes" if converted.num_classes else "no classifier"
    log(f"init: {path}, {converted.config.name} ({SOURCES[converted.source].title}), {classes}")
    for note in converted.notes:
        log(f"init: {note}")
    return converted.model


def _skipped(cfg: Config, source: tuple[Tree, Tree], target: tuple[Tree, Tree]) -> tuple[set[str], list[str]]:
    """Parts, and paths in the head, that stay random; and what to say of it."""
    skip, notes = set(cfg.init_skip), [f"{part} stays random, as config.init_skip says" for part in cfg.init_skip]
    if "head" in skip:
        return skip, notes
    theirs, ours = source[0].get("head", {}), target[0].get("head", {})
    shapes = {path: leaf.shape for path, leaf in dict(flatten(theirs)).items()}
    wanted = {path: leaf.shape for path, leaf in dict(flatten(ours)).items()}
    if not theirs or shapes.keys() != wanted.keys():
        skip.add("head")
        return skip, [*notes, f"the head starts random: the weights have {'another' if theirs else 'none'}"]
    classifier = [path for path in wanted if path[0] == "classifier" and shapes[path] != wanted[path]]
    if classifier:
        old, new = shapes["classifier", "bias"], wanted["classifier", "bias"]
        skip |= {"head/classifier"}
        notes.append(f"the classifier starts random: the weights have {old[0]} classes, this run {new[0]}")
    positions = [path for path in wanted if path[-1] == "positions" and shapes[path] != wanted[path]]
    for path in positions:
        if shapes[path][-1] == wanted[path][-1]:
            grid, to = shapes[path][:3], wanted[path][:3]
            notes.append(f"positions are interpolated from {' x '.join(map(str, grid))} to {' x '.join(map(str, to))}")
    return skip, notes


def _is_skipped(path: tuple[str, ...], skip: set[str]) -> bool:
    return part_of(path) in skip or "/".join(path[:2]) in skip


def _problems(source: tuple[Tree, Tree], target: tuple[Tree, Tree], skip: set[str]) -> list[str]:
    problems = []
    for theirs, ours in zip(source, target, strict=True):
        found = {path: leaf.shape for path, leaf in dict(flatten(theirs)).items() if not _is_skipped(path, skip)}
        wanted = {path: leaf.shape for path, leaf in dict(flatten(ours)).items() if not _is_skipped(path, skip)}
        problems += [f"{'/'.join(path)}: not in the weights" for path in wanted if path not in found]
        problems += [f"{'/'.join(path)}: not in this network" for path in found if path not in wanted]
        problems += [
            f"{'/'.join(path)}: {list(found[path])}, expected {list(shape)}"
            for path, shape in wanted.items()
            if path in found and found[path] != shape and not _interpolates(path, found[path], shape)
        ]
    return problems


def _interpolates(path: tuple[str, ...], found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return path[-1] == "positions" and found[-1] == wanted[-1]


def _spec_differences(source: VideoNetwork, ours: VideoNetwork) -> list[str]:
    """What no shape shows: an epsilon, a pool, a ReLU."""
    if type(ours.spec) is not type(source.spec):
        return []
    return [
        f"{field.name} is {getattr(ours.spec, field.name)!r}, and the weights were trained with "
        f"{getattr(source.spec, field.name)!r}"
        for field in dataclasses.fields(ours.spec)
        if getattr(ours.spec, field.name) != getattr(source.spec, field.name) and field.name != "block_dropout"
    ]
