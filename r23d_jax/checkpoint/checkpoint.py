"""Checkpoints of a run: what is in them, which one to go on from, and a trained network out of one of them."""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r23d_jax import config, models
from r23d_jax.checkpoint.state import TrainState
from r23d_jax.checkpoint.store import BEST_METRIC, DAMAGED, CheckpointError, NewestAndBest, Store, damage
from r23d_jax.config import Config, Preprocessing, UserError
from r23d_jax.models.functional import split_model
from r23d_jax.runtime import parallel
from r23d_jax.version import __version__

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and besides them the best by video top-1.

    Opening it settles what a killed run left behind: half-written and empty folders go.

    Args:
      workdir: the run's folder; checkpoints are `workdir/checkpoints/<step>/`.
      keep: newest ones to keep.
      log: takes one line at a time.
    """

    def __init__(self, workdir: Path, keep: int = 2, log: Callable[[str], None] = print):
        self._log = log
        self._policy = NewestAndBest(keep)
        self._store = Store((workdir / FOLDER).absolute(), self._policy)
        for step in self._store.steps():
            self._policy.set_score(step, self._store.read_score(step))

    def save(self, state: TrainState, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing; returns once the state has been copied off the devices.

        Args:
          state: what to write, under its own step number. A checkpoint of that step that is there already is replaced,
            once the new one is whole.
          meta: JSON values that travel along: config, class names, preprocessing.
          metrics: of an evaluation of this state; without them it is kept as a newest one only.

        Raises:
          CheckpointError: if this write, or the one before it, failed, e.g. because the disk is full.
        """
        step, metrics = int(state.step), dict(metrics or {})
        self._policy.set_score(step, metrics.get(BEST_METRIC))
        self._store.write(step, _items(state), {**meta, "metrics": metrics})

    def restore_latest(self, shardings: TrainState, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is whole, with its meta; None if there is none at all.

        Newer ones that are damaged are named in the log and renamed to `<step>.damaged`, so that they cannot crowd out
        good ones.

        Args:
          shardings: where each leaf is to live; need not be the mesh that saved.
          abstract: shapes and dtypes (`jax.eval_shape`'s result, or a state).

        Raises:
          CheckpointError: if the checkpoint is of another network, cannot be read for a reason other than damage, or
            every checkpoint is damaged.
        """
        damaged: dict[int, str] = {}
        root = self._store.root
        for step in self._store.steps():
            try:
                meta = self._store.read_meta(step)
                if meta.get("converted"):
                    raise CheckpointError(
                        f"{root.parent} holds converted weights, and no training to resume: give another --workdir, "
                        f"and start from them with --config.init_from={root.parent}"
                    )
                items = self._store.read_items(step, _items(abstract), _items(shardings), meta)
            except CheckpointError:
                raise
            except Exception as error:  # damage shows in many ways
                damaged[step] = damage(error, root / str(step))
                continue
            for bad, reason in damaged.items():
                self._store.rename(bad, DAMAGED)
                self._policy.set_score(bad, None)
                self._log(
                    f"checkpoint {root / str(bad)} is damaged ({reason}): renamed to {bad}{DAMAGED}, going on from "
                    f"step {step}"
                )
            return _state(items, abstract), meta
        if damaged:
            raise CheckpointError(_none_whole(root, damaged))
        return None

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          CheckpointError: if a write failed; checkpoints written before are intact.
        """
        self._store.wait()

    def close(self) -> None:
        """Waits, then lets go of Orbax's threads. Without it the newest checkpoint may be lost at exit.

        Raises:
          CheckpointError: as in `wait`.
        """
        try:
            self._store.wait()
        finally:
            self._store.close()


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

    model: models.VideoNetwork
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    config: Config
    step: int
    metrics: dict[str, float]
    path: Path

    @property
    def name(self) -> str:
        """Of the network, in the registry."""
        return models.model_name(self.config.model)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def load_checkpoint(path: Path | str, which: str = "best", log: Callable[[str], None] = _to_stderr) -> LoadedModel:
    """Reads a trained network; needs nothing but the checkpoint, and changes nothing on disk.

    Uses the moving average of the parameters where there is one. A damaged checkpoint is named in the log and passed
    over for the next best, or next newest.

    Args:
      path: a run's folder, its `checkpoints` folder, or one checkpoint `checkpoints/<step>`.
      which: "best" by video top-1 (the newest, where none was evaluated) or "latest".
      log: takes one line at a time; standard error by default.

    Raises:
      CheckpointError: if there is no whole checkpoint under `path`.
    """
    if which not in ("best", "latest"):
        raise CheckpointError(f"which={which!r}: known: best, latest")
    root, only = _find_root(Path(path).absolute())
    store = Store(root)
    damaged: dict[int, str] = {}
    try:
        steps = store.steps()
        if only is not None:
            steps = [step for step in steps if step == only]
        elif which == "best":
            steps = _best_first(store, steps)
        for step in steps:
            try:
                loaded = _load(store, step)
            except UserError:
                raise
            except Exception as error:  # damage shows in many ways
                if (root / str(step)).is_dir():  # else a training at work there has just removed it
                    damaged[step] = damage(error, root / str(step))
                continue
            for bad, reason in damaged.items():
                log(f"checkpoint {root / str(bad)} is damaged ({reason}): using {root / str(step)}")
            return loaded
    finally:
        store.close()
    raise CheckpointError(_none_whole(root, damaged) if damaged else _nothing(Path(path)))


def save_model(folder: Path, model: models.VideoNetwork, cfg: Config, class_names: tuple[str, ...]) -> None:
    """Writes a network that was not trained here as a checkpoint, reads it again and compares every value.

    Args:
      folder: for `load_checkpoint`, `--config.init_from` and the commands; there is nothing to resume from in it.
      model: the network.
      cfg: whose `model` and `data` groups describe it.
      class_names: of its logits.

    Raises:
      CheckpointError: if it cannot be written, or reads differently.
    """
    _, params, batch_stats = split_model(model)
    meta = {
        "config": dataclasses.asdict(cfg),
        "class_names": list(class_names),
        "preprocessing": dataclasses.asdict(config.preprocessing(cfg.data)),
        "version": __version__,
        "metrics": {},
        "converted": True,
    }
    store = Store((folder / FOLDER).absolute(), NewestAndBest(1))
    try:
        store.write(0, {"params": params, "batch_stats": batch_stats}, meta)
        store.wait()
    finally:
        store.close()
    again = split_model(load_checkpoint(folder).model)[1:]
    same = jax.tree.map(np.array_equal, (params, batch_stats), again)
    if not all(jax.tree.leaves(same)):
        raise CheckpointError(f"{folder}: what was written reads differently. Is the disk sound?")


def create_configured_model(cfg: Config, num_classes: int) -> models.VideoNetwork:
    """The network that a config describes, with random weights from its seed."""
    return models.build_model(
        cfg.model,
        num_classes=num_classes,
        num_frames=cfg.data.num_frames,
        crop_size=cfg.data.crop_size,
        dtype=jnp.dtype(parallel.compute_dtype(cfg.parallel)),
        remat=cfg.parallel.remat,
        rngs=nnx.Rngs(cfg.seed),
    )


def _load(store: Store, step: int) -> LoadedModel:
    meta = store.read_meta(step)
    cfg = config.from_dict(meta["config"])
    class_names = tuple(meta["class_names"])
    network, params, batch_stats = split_model(nnx.eval_shape(lambda: create_configured_model(cfg, len(class_names))))
    which = "ema" if cfg.train.ema_decay else "params"
    abstract = {which: params, "batch_stats": batch_stats}
    whole = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    items = store.read_items(step, abstract, jax.tree.map(lambda _: whole, abstract), meta)
    return LoadedModel(
        model=network.build(items[which], items["batch_stats"]),
        class_names=class_names,
        preprocessing=config.from_dict(meta["preprocessing"], Preprocessing),
        config=cfg,
        step=step,
        metrics=meta["metrics"],
        path=store.root / str(step),
    )


def _best_first(store: Store, newest_first: list[int]) -> list[int]:
    def score(step: int) -> float:
        value = store.read_score(step)
        return -math.inf if value is None or math.isnan(value) else value

    return sorted(newest_first, key=score, reverse=True)  # stable: the newer one of two equals


def _find_root(path: Path) -> tuple[Path, int | None]:
    """The folder of checkpoints that a path means, and the step if it means one."""
    for root in (path / FOLDER, path):  # first, because a run's own folder may be called 2026
        if root.is_dir() and any(child.name.isdigit() for child in root.iterdir()):
            return root, None
    if path.name.isdigit() and path.is_dir():
        return path.parent, int(path.name)
    raise CheckpointError(_nothing(path))


def _nothing(path: Path) -> str:
    return f"there is no checkpoint in {path}: give the --workdir of a run, its checkpoints folder, or one step in it"


def _none_whole(root: Path, damaged: dict[int, str]) -> str:
    listed = "\n".join(f"  {step}: {reason}" for step, reason in damaged.items())
    return (
        f"no checkpoint in {root} is whole:\n{listed}\nMove the folder away to start again, or choose another --workdir"
    )
