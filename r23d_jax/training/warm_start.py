"""Starts a run from the network in any file or folder of weights: `config.init_from`."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r23d_jax import config
from r23d_jax.checkpoint.checkpoint import create_configured_model
from r23d_jax.checkpoint.read import read_network
from r23d_jax.checkpoint.state import TrainState
from r23d_jax.config import Config, HeadConfig, UserError
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.find.trained_videos import together, were_among
from r23d_jax.data.sources import names_of
from r23d_jax.models.functional import flatten, initialize, values
from r23d_jax.models.heads import interpolate_positions
from r23d_jax.models.registry import model_name
from r23d_jax.runtime import parallel
from r23d_jax.runtime.mirror import weights_at
from r23d_jax.weights.compare import differences, listed
from r23d_jax.weights.inflate import inflate_parts, sees_only_motion
from r23d_jax.weights.pretrained import pretrained_name
from r23d_jax.weights.state_dicts import Converted
from r23d_jax.weights.tables import part_of

Tree = dict[str, Any]


class WarmStartError(UserError):
    """The weights that a run should start from do not fit its network; the message lists the differences."""


def check_source(cfg: Config, workdir: Path) -> None:
    """Refuses, before any work, weights that a new training cannot start from; one resumed in `workdir` needs none.

    Raises:
      WarmStartError: `cfg.init_from` does not exist, or a part that is not trained would be random.
    """
    if (workdir / "checkpoints").is_dir():
        return
    random = cfg.optimizer.freeze if not cfg.init_from else [p for p in cfg.optimizer.freeze if p in cfg.init_skip]
    if random:
        why = "config.init_skip leaves them out" if cfg.init_from else "config.init_from is empty"
        raise WarmStartError(
            f"config.optimizer.freeze: {', '.join(random)} would stay random for ever, because {why}; give weights "
            "(--config.init_from=FILE), or train all parts (--config.optimizer.freeze='()')"
        )
    path = weights_at(cfg.init_from)
    there = pretrained_name(path) or path.exists() or path.with_name(f"{path.name}.index").is_file()
    if cfg.init_from and not there:
        instead = "" if cfg.optimizer.freeze else ", or --config.init_from= for random ones"
        raise WarmStartError(
            f"config.init_from={cfg.init_from}: there is no such file or folder; give the weights to start from "
            f"(--config.init_from=FILE){instead}; docs/converting.md says where they are"
        )


def warm_start(
    cfg: Config,
    state: TrainState,
    shardings: TrainState,
    num_classes: int,
    log: Callable[[str], None],
    class_names: tuple[str, ...] = (),
    scored: VideoIndex | None = None,
) -> tuple[TrainState, str]:
    """The state before the first step, with the weights that `cfg.init_from` names instead of random ones.

    The backbone must be the same, except for parts in `cfg.init_skip`. A head of another kind stays random, except for
    the classifier if both classify the mean of all places: an average pool becomes a `residual` head with the same
    logits. A classifier of other classes stays random too; the rows of the same classes in another order follow their
    names. Positions are interpolated. A network of frames starts one of frames and their differences with the same
    logits, because the stem's kernels for the differences are zero; so does a network of differences.

    Args:
      cfg: `init_from` is a file of foreign weights, a run's folder or a checkpoint; image networks are inflated.
      log: takes one line for each part that was or was not taken.
      class_names: of the run, in the order of the logits; () trusts the order in the weights.
      scored: the videos that the run is evaluated on.

    Returns:
      The state, and the videos that the weights were trained on, as `trained_videos.digests`.

    Raises:
      UserError: if the weights cannot be read or do not fit.
    """
    path = weights_at(cfg.init_from)
    ours = nnx.eval_shape(lambda: create_configured_model(cfg, num_classes))
    target = values(ours)

    def inflated(arrays: dict[str, np.ndarray]) -> Converted:
        random = initialize(lambda: create_configured_model(cfg, num_classes))
        model, parts = inflate_parts(arrays, random, cfg.inflate, cfg.init_skip)
        pre, origin = config.preprocessing(cfg.data), f"an image network, inflated ({cfg.inflate})"
        notes, head, classes = ["only what fits is taken of its head"], cfg.model.head, num_classes
        if "head" not in parts:  # random values are not the image network's
            model.head, head, classes = nnx.Module(), HeadConfig(kind="none"), 0
        if sees_only_motion(random) and cfg.inflate != "center":
            notes.append("its stem is inflated by center: kernels that are the same at all times would see no motion")
        return Converted(model, dataclasses.replace(cfg.model, head=head), classes, "", (), pre, tuple(notes), origin)

    source = read_network(path, inflated, log=log)
    log(f"init: {source.origin}: {source.name}, {source.config.head.kind} head, {source.num_classes} classes")
    if leak := _seen(source, cfg, class_names, scored):
        log(f"init: {leak}")
    params, batch_stats = values(source.model)
    skip, notes = _skipped(cfg, source.config.head, (params, batch_stats), target)
    if cfg.data.input == "rgb_and_diff" and source.config.in_channels == 3 and "stem" not in skip:
        first = source.preprocessing.input == "rgb"
        params["stem"] = _with_six_channels(params["stem"], first)
        notes.append(f"the stem's kernels start at zero for {'the differences' if first else 'the frames'}")
    if (source.config.family, cfg.model.family) == ("i3d", "i3d_gamma"):
        params = _with_gammas(params, target[0])
        notes.append("BN's gammas start at one: the weights have none")
    if not {"head", "head/classifier"} & skip:
        order, note = _class_order(source.class_names, class_names)
        if note:
            notes.append(note)
        if order is None:
            skip.add("head/classifier")
        elif order:
            kernel, bias = (params["head"]["classifier"][name][..., np.asarray(order)] for name in ("kernel", "bias"))
            params["head"]["classifier"] |= {"kernel": kernel, "bias": bias}
    changes = ours.spec.changes(source.model.spec)  # an epsilon, a pool, a ReLU
    changes = {field: change for field, change in changes.items() if field not in ("block_dropout", "stochastic_depth")}
    unseen = [
        f"{field} is {here!r}, and the weights were trained with {there!r}"
        for field, (here, there) in (changes | _other_clips(source, cfg, skip)).items()
    ]
    for note in (*source.notes, *notes, *unseen):
        log(f"init: {note}")
    problems = _problems((params, batch_stats), target, skip)
    if problems:
        raise WarmStartError(
            f"config.init_from={cfg.init_from}: these weights are of another network than {model_name(cfg.model)}; set "
            "config.model as they need it, or leave parts random with config.init_skip, e.g. "
            f"--config.init_skip='(\"stage4\",)':\n{listed(problems)}"
        )
    taken = [0, 0]

    def value(source_tree: Tree, state_tree: Tree, sharding_tree: Tree) -> Tree:
        flat = flatten(source_tree)

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
    state = dataclasses.replace(state, params=new_params, batch_stats=new_stats, ema=ema)
    return state, together(source.videos, source.init_videos)


def _other_clips(source: Converted, cfg: Config, skip: set[str]) -> dict[str, tuple[Any, Any]]:
    """(here, there) of what the two networks see of a video, where it differs and the source says it."""
    here, there = config.preprocessing(cfg.data), source.preprocessing
    fields = () if source.assumed else ("input", "mean", "std", "byte_range", "frame_stride", "frame_seconds")
    changes = {field: (getattr(here, field), getattr(there, field)) for field in fields}
    head, their_head = cfg.model.head, source.config.head
    if "head" not in skip and head.kind == their_head.kind and head.kind in ("vit", "attention_pool"):
        changes["head.tokens"] = (head.tokens, their_head.tokens)
    return {field: (ours, theirs) for field, (ours, theirs) in changes.items() if ours != theirs}


def _seen(source: Converted, cfg: Config, names: tuple[str, ...], scored: VideoIndex | None) -> str:
    """A sentence if the run that the weights are from was, or may have been, trained on videos that this one scores.

    Raises WarmStartError for a fold that it was trained on, with the same classes.
    """
    theirs, ours, their_names = source.data, cfg.data, source.class_names
    kept = (source.videos, source.init_videos)
    seen, seen_before = (0, 0) if scored is None else (int(were_among(text, scored).sum()) for text in kept)
    total = 0 if scored is None else len(scored)
    of_ours = f"of the {total:,} videos that this run is evaluated on, by their names"
    if theirs is None:
        return f"trained on {seen:,} {of_ours}" if seen else ""
    motion = bool(theirs.motion.speeds)
    same = not motion and set(their_names) == set(names)
    trained = f"trained on the training list of split {theirs.split}"
    trained += f", but for fold {theirs.fold}" if theirs.fold else ""
    if seen:
        if ours.fold and same and names_of(theirs) == names_of(ours):
            raise _fold_was_trained_on(cfg, trained)
        unlabeled = ", without their labels" if motion else ""
        return f"{trained}, which has {seen:,} {of_ours}{unlabeled}"
    if seen_before:
        return f"started from weights that were trained on {seen_before:,} {of_ours}"
    if theirs.source == "pictures" or not (motion or set(their_names) & set(names)):
        return ""
    if ours.fold and (ours.fold, ours.split) != (theirs.fold, theirs.split):
        if same and names_of(theirs) == names_of(ours):
            raise _fold_was_trained_on(cfg, trained)
        return f"{trained}; if these are the same videos, it knows some of fold {ours.fold} of split {ours.split}"
    if ours.split != theirs.split:
        return (
            f"trained on split {theirs.split}, which may have test videos of split {ours.split} among its training "
            "videos"
        )
    if ours.hold_out and not motion and ours.hold_out != theirs.hold_out:
        return f"trained with config.data.hold_out={theirs.hold_out:g}, so it may know the videos held out here"
    return ""


def _fold_was_trained_on(cfg: Config, trained: str) -> WarmStartError:
    fold, split = cfg.data.fold, cfg.data.split
    return WarmStartError(
        f"config.init_from={cfg.init_from}: was {trained}, and so on videos of fold {fold} of split {split}, on which "
        f"this training is evaluated: start from a run with config.data.fold={fold} and config.data.split={split}"
    )


def _skipped(
    cfg: Config, their_head: HeadConfig, source: tuple[Tree, Tree], target: tuple[Tree, Tree]
) -> tuple[set[str], list[str]]:
    """Parts, and paths in the head, that stay random, and notes on why."""
    skip, notes = set(cfg.init_skip), [f"{part} stays random, as config.init_skip says" for part in cfg.init_skip]
    if "head" in skip:
        return skip, notes
    theirs, ours = source[0].get("head", {}), target[0].get("head", {})
    shapes = {path: leaf.shape for path, leaf in flatten(theirs).items()}
    wanted = {path: leaf.shape for path, leaf in flatten(ours).items()}
    if not theirs or shapes.keys() != wanted.keys():
        if not (theirs and all(head.kind == "avgpool" or head.residual for head in (their_head, cfg.model.head))):
            skip.add("head")
            return skip, [*notes, f"the head starts random: the weights have {'another' if theirs else 'none'}"]
        skip |= {f"head/{name}" for name in theirs.keys() | ours.keys() if name != "classifier"}
        notes.append("the head starts random, except for the classifier of the mean of all places")
    classifier = [path for path in wanted if path[0] == "classifier" and shapes[path] != wanted[path]]
    if classifier:
        old, new = shapes["classifier", "bias"], wanted["classifier", "bias"]
        skip |= {"head/classifier"}
        notes.append(f"the classifier starts random: the weights have {old[0]} classes, this run {new[0]}")
    positions = [path for path in wanted if path[-1] == "positions" and not _is_skipped(("head", *path), skip)]
    for path in positions:
        if shapes[path] != wanted[path] and shapes[path][-1] == wanted[path][-1]:
            grid, to = shapes[path][:3], wanted[path][:3]
            notes.append(f"positions are interpolated from {' x '.join(map(str, grid))} to {' x '.join(map(str, to))}")
    return skip, notes


def _with_six_channels(stem: Tree, first: bool) -> Tree:
    """The stem of three channels for six: they are the `first` three or the last, and the others count for nothing."""

    def leaf(value: np.ndarray) -> np.ndarray:
        if value.ndim != 5 or value.shape[3] != 3:
            return value
        return np.pad(value, [(0, 0)] * 3 + [(0, 3) if first else (3, 0)] + [(0, 0)])

    return jax.tree.map(leaf, stem)


def _with_gammas(params: Tree, target: Tree) -> Tree:
    """The parameters for a network whose BN has gammas, from one whose BN has none: a gamma of one changes nothing."""
    both = {name: isinstance(value, dict) and name in target for name, value in params.items()}
    params = {name: _with_gammas(value, target[name]) if both[name] else value for name, value in params.items()}
    if "scale" in target:
        params.setdefault("scale", np.ones(target["scale"].shape, np.float32))
    return params


def _class_order(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[list[int] | None, str]:
    """Where each class of a run is among the weights' classes: [] for the same place, None if they are others.

    Case, spaces and punctuation do not count: `air_drumming` is `air drumming`. Numbers in place of names tell nothing.
    """
    numbers = (all(re.fullmatch(r"(class_)?\d+", name) for name in names) for names in (old, new))
    theirs, ours = ([re.sub(r"[\W_]+", "", name).casefold() for name in names] for names in (old, new))
    if old == new or any(numbers) or (theirs == ours and len(set(ours)) == len(ours)):
        return [], ""
    if len(set(theirs)) < len(theirs) or len(set(ours)) < len(ours):  # only punctuation tells C from C++
        theirs, ours = list(old), list(new)
    if set(theirs) == set(ours):
        order = [theirs.index(name) for name in ours]
        return order, "the classes have another order here; the classifier's rows follow them"
    other = next(name for name, folded in zip(old, theirs, strict=True) if folded not in ours)
    return None, f"the classifier starts random: the weights have other classes, e.g. {other}"


def _is_skipped(path: tuple[str, ...], skip: set[str]) -> bool:
    return part_of(path) in skip or "/".join(path[:2]) in skip


def _problems(source: tuple[Tree, Tree], target: tuple[Tree, Tree], skip: set[str]) -> list[str]:
    problems = []
    for theirs, ours in zip(source, target, strict=True):
        found, wanted = (
            {"/".join(path): list(leaf.shape) for path, leaf in flatten(tree).items() if not _is_skipped(path, skip)}
            for tree in (theirs, ours)
        )
        for name in found.keys() & wanted.keys():
            if name.endswith("/positions") and found[name][-1] == wanted[name][-1]:
                found[name] = wanted[name]  # interpolated
        problems += differences(found, wanted)
    return problems
