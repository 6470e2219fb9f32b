"""Checkpoints: written in the background, verified leaf by leaf when read, never the only copy of anything.

Orbax writes and reads; this file closes what it leaves open. It restores a flipped byte without a word, so a checksum
of every leaf travels along. It does not go back to an older checkpoint when the newest is damaged, so this does. Its
obvious way to keep the best drops the newest, so both are kept by an explicit policy.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from r23d_jax import config, models
from r23d_jax.config import Config, Preprocessing, UserError
from r23d_jax.models.functional import split_model
from r23d_jax.training.state import TrainState

FOLDER = "checkpoints"
BEST_METRIC = "val/top1_video"


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another network; the message says which and what to do."""


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and besides them the best by video top-1.

    Args:
      workdir: the run's folder; checkpoints are `workdir/checkpoints/<step>/`.
      keep: newest ones to keep.
      log: takes one line at a time.
    """

    def __init__(self, workdir: Path, keep: int = 2, log: Callable[[str], None] = print):
        self._root = (workdir / FOLDER).absolute()
        self._log = log
        self._manager = _manager(self._root, keep)

    def save(self, state: TrainState, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing; returns once the state has been copied off the devices.

        Args:
          state: what to write, under its own step number. A checkpoint of that step that is there already is replaced.
          meta: JSON values that travel along: config, class names, preprocessing.
          metrics: of an evaluation of this state; without them it is kept as a newest one only.

        Raises:
          CheckpointError: if an earlier write failed, e.g. because the disk is full.
        """
        step = int(state.step)
        items = _items(state)
        meta = {**meta, "leaves": _leaf_table(items), "metrics": dict(metrics or {}), "step": step}
        self.wait()
        try:
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    meta=ocp.args.JsonSave(meta), **{name: ocp.args.StandardSave(tree) for name, tree in items.items()}
                ),
                metrics=dict(metrics) if metrics else None,
                force=True,
            )
        except Exception as error:  # Orbax raises many kinds, a full disk among them
            raise self._write_error(error) from error

    def restore_latest(self, shardings: TrainState, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is whole, with its meta; None if there is none at all.

        A damaged checkpoint is named in the log and the one before it is read.

        Args:
          shardings: where each leaf is to live; need not be the mesh that saved.
          abstract: shapes and dtypes (`jax.eval_shape`'s result, or a state).

        Raises:
          CheckpointError: if the checkpoint is of another network, or every checkpoint is damaged.
        """
        steps = _steps(self._manager)
        for step in steps:
            try:
                meta = _read_meta(self._manager, step)
                _check_same_network(meta["leaves"], _items(abstract), self._root / str(step))
                items = _read_items(self._manager, step, _items(abstract), _items(shardings), meta)
            except CheckpointError:
                raise
            except Exception as error:  # damage shows in many ways
                self._log(
                    f"checkpoint {self._root / str(step)} is damaged ({_first_line(error)}); trying the one before"
                )
                continue
            return _state(items, abstract), meta
        if steps:
            raise CheckpointError(
                f"every checkpoint in {self._root} is damaged: {', '.join(map(str, steps))}. Move the folder away to "
                "start again, or choose another --workdir."
            )
        return None

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          CheckpointError: if a write failed; checkpoints written before are intact.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._write_error(error) from error

    def close(self) -> None:
        """Waits, then lets go of Orbax's threads. Without it the newest checkpoint may be lost at exit."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _write_error(self, error: Exception) -> CheckpointError:
        full = "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error)
        reason = "the disk is full" if full else _first_line(error)
        return CheckpointError(
            f"a checkpoint could not be written to {self._root}: {reason}. Earlier checkpoints are intact; make room "
            "and run the same command again."
        )


# -- a trained network on its own --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A trained network and everything that using it needs.

    Attributes:
      model: in evaluation mode.
      class_names: of the logits, in order.
      preprocessing: from frames to the network's input.
      config: of the run.
      step: of the checkpoint.
      metrics: of the checkpoint's evaluation; {} if it was not evaluated.
      path: the checkpoint's folder.
    """

    model: models.VideoResNet
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    config: Config
    step: int
    metrics: dict[str, float]
    path: Path


def load_checkpoint(path: Path | str, which: str = "best") -> LoadedModel:
    """Reads a trained network; needs nothing but the checkpoint.

    Uses the moving average of the parameters where there is one. A damaged checkpoint is passed over for the next best.

    Args:
      path: a run's folder, its `checkpoints` folder, or one checkpoint `checkpoints/<step>`.
      which: "best" by video top-1 (the newest, where none was evaluated) or "latest".

    Raises:
      CheckpointError: if there is no whole checkpoint under `path`.
    """
    if which not in ("best", "latest"):
        raise CheckpointError(f"which={which!r}: known: best, latest")
    root, only = _find_root(Path(path).absolute())
    manager = _manager(root, keep=None)
    try:
        steps = [only] if only is not None else _steps(manager)
        if which == "best" and only is None:
            steps = sorted(steps, key=lambda step: _score(manager, step), reverse=True)  # stable: newest first
        problems = []
        for step in steps:
            try:
                return _load(manager, root, step)
            except UserError:
                raise
            except Exception as error:  # damage shows in many ways
                problems.append(f"{root / str(step)} ({_first_line(error)})")
    finally:
        manager.close()
    raise CheckpointError(f"no checkpoint in {root} is whole: {'; '.join(problems)}" if problems else _nothing(root))


def load_model(path: Path | str, which: str = "best") -> models.VideoResNet:
    """The network of a checkpoint, in evaluation mode; see `load_checkpoint`."""
    return load_checkpoint(path, which).model


def create_configured_model(cfg: Config, num_classes: int) -> models.VideoResNet:
    """The network that a config describes, with random weights from its seed."""
    return models.create_model(
        cfg.model.name,
        num_classes=num_classes,
        head=cfg.model.head,
        num_frames=cfg.data.num_frames,
        crop_size=cfg.data.crop_size,
        widths=cfg.model.widths,
        block_dropout=cfg.model.block_dropout,
        dtype=jnp.dtype(cfg.parallel.compute_dtype),
        remat=cfg.parallel.remat,
        rngs=nnx.Rngs(cfg.seed),
    )


def _load(manager: ocp.CheckpointManager, root: Path, step: int) -> LoadedModel:
    meta = _read_meta(manager, step)
    cfg = config.from_dict(meta["config"])
    class_names = tuple(meta["class_names"])
    network, params, batch_stats = split_model(nnx.eval_shape(lambda: create_configured_model(cfg, len(class_names))))
    which = "ema" if cfg.train.ema_decay else "params"
    abstract = {which: params, "batch_stats": batch_stats}
    _check_same_network(meta["leaves"], abstract, root / str(step))
    whole = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    items = _read_items(manager, step, abstract, jax.tree.map(lambda _: whole, abstract), meta)
    return LoadedModel(
        model=network.build(items[which], items["batch_stats"]),
        class_names=class_names,
        preprocessing=config.from_dict(meta["preprocessing"], Preprocessing),
        config=cfg,
        step=step,
        metrics=meta["metrics"],
        path=root / str(step),
    )


def _find_root(path: Path) -> tuple[Path, int | None]:
    """The folder of checkpoints that a path means, and the step if it means one."""
    if path.name.isdigit() and path.is_dir():
        return path.parent, int(path.name)
    for root in (path / FOLDER, path):
        if root.is_dir() and any(child.name.isdigit() for child in root.iterdir()):
            return root, None
    raise CheckpointError(_nothing(path))


def _nothing(path: Path) -> str:
    return f"there is no checkpoint in {path}: give the --workdir of a run, its checkpoints folder, or one step in it"


def _score(manager: ocp.CheckpointManager, step: int) -> float:
    try:
        return _read_meta(manager, step)["metrics"].get(BEST_METRIC, -1.0)
    except Exception:  # damaged: comes last
        return -2.0


# -- through Orbax -----------------------------------------------------------------------------------------------------


def _manager(root: Path, keep: int | None) -> ocp.CheckpointManager:
    """`keep=None` opens for reading."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save
    if keep is None:
        return ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions(read_only=True))
    newest = checkpoint_managers.LatestN(keep)
    best = checkpoint_managers.BestN(
        get_metric_fn=lambda metrics: metrics[BEST_METRIC], n=1, keep_checkpoints_without_metrics=False
    )
    return ocp.CheckpointManager(
        root,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([newest, best]),
            best_fn=lambda metrics: metrics[BEST_METRIC],  # without it Orbax forgets the metrics; the policy decides
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            create=True,
        ),
    )


def _steps(manager: ocp.CheckpointManager) -> list[int]:
    """Newest first; folders that hold nothing are not checkpoints."""
    root = Path(manager.directory)
    return [step for step in sorted(manager.all_steps(read=True), reverse=True) if any((root / str(step)).iterdir())]


def _read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def _read_items(
    manager: ocp.CheckpointManager, step: int, abstract: dict[str, Any], shardings: dict[str, Any], meta: dict[str, Any]
) -> dict[str, Any]:
    """Reads the items that `abstract` names and verifies the checksum of every leaf."""
    targets = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )
    restored = manager.restore(
        step, args=ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in targets.items()})
    )
    items = {name: restored[name] for name in targets}
    for name, (_, _, checksum) in _leaf_table(items).items():
        if checksum != meta["leaves"][name][2]:
            raise ValueError(f"the checksum of {name} is wrong")
    return items


def _items(state: TrainState) -> dict[str, Any]:
    """The state as trees that can be read one by one; all of plain dicts, whatever optax's state is made of."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state.opt_state)
    items = {
        "step": {"step": state.step},
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat},
    }
    return items | ({"ema": state.ema} if state.ema else {})


def _state(items: dict[str, Any], like: TrainState) -> TrainState:
    flat, structure = jax.tree_util.tree_flatten_with_path(like.opt_state)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in flat]
    return TrainState(
        step=items["step"]["step"],
        params=items["params"],
        batch_stats=items["batch_stats"],
        opt_state=jax.tree.unflatten(structure, [items["opt_state"][name] for name in names]),
        ema=items.get("ema", {}),
    )


def _check_same_network(stored: dict[str, list], abstract: dict[str, Any], path: Path) -> None:
    wanted = {name: (list(leaf.shape), str(leaf.dtype)) for name, leaf in _named_leaves(abstract)}
    items = tuple(f"{item}/" for item in abstract)
    found = {name: (row[0], row[1]) for name, row in stored.items() if name.startswith(items)}
    problems = [f"{name}: missing" for name in wanted if name not in found]
    problems += [f"{name}: not in this network" for name in found if name not in wanted]
    problems += [
        f"{name}: {found[name][1]}{found[name][0]}, expected {wanted[name][1]}{wanted[name][0]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(
            f"checkpoint {path} is of another network or optimizer than this config describes; use the config it was "
            "trained with, or another --workdir:\n  " + "\n  ".join(problems[:10]) + more
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


# -- checksums ---------------------------------------------------------------------------------------------------------


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in flat]


def _leaf_table(items: dict[str, Any]) -> dict[str, list]:
    """Shape, dtype and checksum of every leaf, by name; JSON values."""
    named = _named_leaves(items)
    sums = jax.device_get(_checksums([leaf for _, leaf in named]))
    return {
        name: [list(leaf.shape), str(leaf.dtype), f"{int(total):08x}"]
        for (name, leaf), total in zip(named, np.asarray(sums), strict=True)
    }


@jax.jit
def _checksums(leaves: list[jax.Array]) -> jax.Array:
    """A 32-bit checksum per leaf, computed where the leaf lies and the same however it is spread over devices.

    The sum, modulo 2^32, of every element's bits times an odd number that depends on its place. A change of one element
    is always seen, because an odd number has an inverse; so are, all but surely, exchanged and repeated elements.
    """
    return jnp.stack([_checksum(leaf) for leaf in leaves])


def _checksum(leaf: jax.Array) -> jax.Array:
    width = jnp.dtype(leaf.dtype).itemsize * 8
    unsigned = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[width]
    bits = leaf.view(unsigned).astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, length in enumerate(leaf.shape):
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    return jnp.sum(bits * (place * jnp.uint32(0x9E3779B2) + jnp.uint32(1)), dtype=jnp.uint32)
