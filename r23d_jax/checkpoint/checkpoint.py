"""Checkpoints of a run: their content, which one to resume from, and loading a trained network from one."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r23d_jax import config, models
from r23d_jax.checkpoint.state import TrainState
from r23d_jax.checkpoint.store import BEST_METRIC, DAMAGED, CheckpointError, NewestAndBest, Store, damage
from r23d_jax.config import CHECKPOINTS, Config, Preprocessing, UserError
from r23d_jax.models.functional import split_model, values
from r23d_jax.runtime import distributed, parallel
from r23d_jax.runtime.mirror import weights_at
from r23d_jax.version import __version__
from r23d_jax.weights.download import to_stderr

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run, `workdir/checkpoints/<step>/`: the newest `keep`, and the best by video top-1.

    Opening it removes half-written and empty folders that a killed run left. `common` is that of `Store`.
    """

    def __init__(self, workdir: Path, keep: int = 2, log: Callable[[str], None] = print, *, common: bool = True):
        self._log, self._common = log, common
        self._policy = NewestAndBest(keep)
        self._store = Store((workdir / FOLDER).absolute(), self._policy, common=common)
        for step in self._store.steps():
            self._policy.set_score(step, self._store.read_score(step))

    def save(self, state: TrainState, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing; returns once the state has been copied off the devices.

        Args:
          state: to write under its own step number. An existing checkpoint of that step is replaced once the new one is
            complete.
          meta: JSON values saved with it: config, class names, preprocessing.
          metrics: of an evaluation of this state; without them it cannot become the best.

        Raises:
          CheckpointError: if this write, or the one before it, failed, e.g. because the disk is full.
        """
        step, metrics = int(state.step), dict(metrics or {})
        self._policy.set_score(step, metrics.get(BEST_METRIC))
        self._store.write(step, _items(state), {**meta, "metrics": metrics})

    def restore_latest(
        self, shardings: TrainState, abstract: TrainState, class_names: Sequence[str] = ()
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest intact checkpoint with its meta; None if there is no checkpoint.

        Newer damaged ones are logged and renamed to `<step>.damaged`, so that they do not displace good ones.

        Args:
          shardings: of each leaf; may differ from the mesh that saved.
          abstract: shapes and dtypes (`jax.eval_shape`'s result, or a state).
          class_names: of the run; () accepts any.

        Raises:
          CheckpointError: if the checkpoint is of another network or other classes, cannot be read for a reason other
            than damage, or every checkpoint is damaged.
        """
        if self._common:
            return self._read_latest(shardings, abstract, class_names)
        own = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        found = None
        if jax.process_index() == 0:
            found = self._read_latest(jax.tree.map(lambda _: own, shardings), abstract, class_names)
        found = parallel.from_first(found and (jax.tree.map(np.asarray, _items(found[0])), found[1]))
        return found and (jax.tree.map(parallel.place, _state(found[0], abstract), shardings), found[1])

    def _read_latest(
        self, shardings: TrainState, abstract: TrainState, class_names: Sequence[str]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        root = self._store.root

        def read_step(step: int) -> tuple[TrainState, dict[str, Any]]:
            meta = self._store.read_meta(step)
            if meta.get("converted"):
                raise CheckpointError(
                    f"{root.parent} holds converted weights, and no training to resume: give another --workdir, "
                    f"and start from them with --config.init_from={root.parent}"
                )
            _check_classes(meta, class_names, root)
            return _state(self._store.read_items(step, _items(abstract), _items(shardings), meta), abstract), meta

        restored, damaged = _first_intact(root, self._store.steps(), read_step)
        for step, reason in damaged.items():
            self._store.rename(step, DAMAGED)
            self._policy.set_score(step, None)
            self._log(
                f"checkpoint {root / str(step)} is damaged ({reason}): renamed to {step}{DAMAGED}, resuming from step "
                f"{int(restored[0].step)}"
            )
        return restored

    def wait(self) -> None:
        """Returns when everything is on disk; raises CheckpointError if a write failed (earlier ones are intact)."""
        self._store.wait()

    def newest(self) -> int | None:
        """The step of the newest checkpoint, once everything is on disk; None if there is none."""
        self._store.wait()
        return max(self._store.steps(), default=None)

    def close(self) -> None:
        """Waits, then ends Orbax's threads. Without it the newest checkpoint may be lost at exit; raises as `wait`."""
        try:
            self._store.wait()
        finally:
            self._store.close()


def _check_classes(meta: Mapping[str, Any], class_names: Sequence[str], root: Path) -> None:
    pairs = zip(meta.get("class_names", ()), class_names, strict=False)
    number, pair = next(((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1]), (0, ()))
    if pair:
        raise CheckpointError(
            f"{root.parent} was trained with other classes, or in another order: class {number} is {pair[0]} there and "
            f"{pair[1]} here. Use the lists it was trained with, or give another --workdir and start from its "
            f"weights with --config.init_from={root.parent}"
        )


def _items(state: TrainState) -> dict[str, Any]:
    """The state as trees of plain dicts that can be read one by one, whatever the types in optax's state."""
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
    """A trained network and everything needed to use it."""

    model: models.VideoNetwork  # in evaluation mode
    class_names: tuple[str, ...]  # of the logits, in order
    preprocessing: Preprocessing  # from frames to the network's input
    config: Config  # of the run
    step: int  # of the checkpoint
    metrics: dict[str, float]  # of the checkpoint's evaluation; {} if it was not evaluated
    path: Path  # the checkpoint's folder
    videos: str = ""  # that it was trained on, as `trained_videos.digests`; "" if they are not known
    init_videos: str = ""  # likewise, those of the weights that its training started from
    # how it was chosen from those of its run, in words; "" if it was named itself, or is no checkpoint
    chosen: str = ""

    @property
    def name(self) -> str:
        """The network's name in the registry."""
        return models.model_name(self.config.model)

    @property
    def title(self) -> str:
        """The network, and which checkpoint of its run it is, in one line."""
        which = f"step {self.step:,}, {self.chosen}" if self.chosen else self.path
        return f"{self.name}, {len(self.class_names)} classes, {which}"


def load_checkpoint(
    path: Path | str, which: str = "best", log: Callable[[str], None] = to_stderr, compute_dtype: str = ""
) -> LoadedModel:
    """Reads a trained network from a checkpoint alone, and changes nothing on disk.

    Prefers the moving average of the parameters. A damaged checkpoint is logged, and the next best or next newest one
    is read instead.

    Args:
      path: a run's folder, its `checkpoints` folder, or one checkpoint `checkpoints/<step>`; a path, or a URL as text.
      which: "best" by video top-1 (the newest, if none was evaluated) or "latest".
      log: takes one line at a time; standard error by default.
      compute_dtype: that the network computes in; that of its config by default.

    Raises:
      CheckpointError: if there is no intact checkpoint under `path`.
    """
    if which not in CHECKPOINTS:
        raise CheckpointError(f"which={which!r}: known: {', '.join(CHECKPOINTS)}")
    root, only = _find_root(weights_at(str(path)).absolute())
    store = Store(root)
    try:
        steps = [step for step in store.steps() if only in (None, step)]
        if which == "best":
            steps = _best_first(store, steps)
        loaded, damaged = _first_intact(root, steps, functools.partial(_load, store, compute_dtype))
    finally:
        store.close()
    if loaded is None:
        raise CheckpointError(_nothing(Path(path)))
    for step, reason in damaged.items():
        log(f"checkpoint {root / str(step)} is damaged ({reason}): using {loaded.path}")
    if only is not None:
        return loaded
    return dataclasses.replace(loaded, chosen=_chosen(which, loaded.metrics.get(BEST_METRIC), len(steps)))


def save_model(
    folder: Path,
    model: models.VideoNetwork,
    cfg: Config,
    class_names: tuple[str, ...],
    preprocessing: Preprocessing | None = None,
    *,
    videos: str = "",
    init_videos: str = "",
) -> None:
    """Writes a network that was not trained here as a checkpoint, reads it again and compares every value.

    Args:
      folder: for `load_checkpoint`, `--config.init_from` and the commands; training cannot resume from it.
      cfg: its `model` and `data` groups describe the network.
      preprocessing: of its clips; by default that of `cfg.data`, which does not know the rate of the videos.
      videos: see `LoadedModel`.
      init_videos: see `LoadedModel`.

    Raises:
      CheckpointError: if it cannot be written, or reads differently.
    """
    params, batch_stats = values(model)
    preprocessing = preprocessing or config.preprocessing(cfg.data)
    meta = {
        "config": dataclasses.asdict(cfg),
        "class_names": list(class_names),
        "preprocessing": dataclasses.asdict(preprocessing),
        "version": __version__,
        "metrics": {},
        "converted": True,
        "videos": videos,
        "init_videos": init_videos,
    }
    store = Store((folder / FOLDER).absolute(), NewestAndBest(1))
    try:
        store.write(0, {"params": params, "batch_stats": batch_stats}, meta)
        store.wait()
    finally:
        store.close()
    again = load_checkpoint(folder)
    same = jax.tree.map(np.array_equal, (params, batch_stats), values(again.model))
    if again.preprocessing != preprocessing or not all(jax.tree.leaves(same)):
        raise CheckpointError(f"{folder}: reading it back gave other values. Check the disk.")


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


def _load(store: Store, compute_dtype: str, step: int) -> LoadedModel:
    meta = store.read_meta(step)
    cfg = config.from_dict(meta["config"])
    cfg.parallel.compute_dtype = compute_dtype or cfg.parallel.compute_dtype
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
        videos=meta.get("videos", ""),
        init_videos=meta.get("init_videos", ""),
    )


def _chosen(which: str, score: float | None, count: int) -> str:
    if which == "latest":
        return "the last checkpoint"
    if score is None or math.isnan(score):
        return "the last checkpoint, because none was evaluated" if count > 1 else "the only checkpoint"
    return f"the best checkpoint, video top-1 {100 * score:.2f} %"


def _best_first(store: Store, newest_first: list[int]) -> list[int]:
    def score(step: int) -> float:
        try:
            value = store.read_meta(step)["metrics"].get(BEST_METRIC)
        except Exception:  # it may be the best: tried first, its damage is told
            return math.inf
        return -math.inf if value is None or math.isnan(value) else value

    return sorted(newest_first, key=score, reverse=True)  # stable: the newer one of two equals


def _find_root(path: Path) -> tuple[Path, int | None]:
    """The folder of checkpoints that a path refers to, and the step if it names one."""
    for root in (path / FOLDER, path):  # first, because a run's own folder may be called 2026
        if root.is_dir() and any(child.name.isdigit() and not _is_run(child) for child in root.iterdir()):
            return root, None
    runs = sorted(child.name for child in path.iterdir() if _is_run(child)) if path.is_dir() else []
    if runs:
        more = ", ..." if len(runs) > 3 else ""
        raise CheckpointError(f"{path} is a folder of runs: give one of them ({', '.join(runs[:3])}{more})")
    if path.name.isdigit() and path.is_dir() and not _is_run(path):
        return path.parent, int(path.name)
    raise CheckpointError(_nothing(path))


def _is_run(folder: Path) -> bool:
    return os.path.isdir(folder / FOLDER)  # a Path raises an error if the folder is not readable


def _nothing(path: Path) -> str:
    return f"there is no checkpoint in {path}: give the --workdir of a run, its checkpoints folder, or one step in it"


def _first_intact(root: Path, steps: list[int], read_step: Callable[[int], Any]) -> tuple[Any, dict[int, str]]:
    """What `read_step` gives for the first undamaged step (None without steps), and what is wrong with those before it.

    Raises:
      CheckpointError: if all are damaged, or one cannot be read for another reason.
    """
    damaged: dict[int, str] = {}
    for step in steps:
        try:
            return read_step(step), damaged
        except UserError:
            raise
        except Exception as error:  # damage shows in many ways
            if distributed.means_loss(error):
                raise
            if (root / str(step)).is_dir():  # else a running training has just removed it
                damaged[step] = damage(error, root / str(step))
    if not damaged:
        return None, {}
    listed = "\n".join(f"  {step}: {reason}" for step, reason in damaged.items())
    raise CheckpointError(
        f"no checkpoint in {root} is intact:\n{listed}\nMove the folder away to start over, or choose another --workdir"
    )
