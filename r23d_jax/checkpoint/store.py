"""A folder of checkpoints on disk; the only file that uses Orbax, and works around its gaps.

Orbax restores flipped bytes silently, so every leaf and the meta have a checksum. Its option to keep the best drops the
newest, and a damaged metrics file keeps it from opening, so scores live in the meta and `NewestAndBest` decides. It
never removes the remains of a killed or failed write, so `tidy` does. It cannot replace a step, so the old folder is
renamed and removed once the new one is complete.
"""

import contextlib
import errno
import functools
import gc
import hashlib
import json
import logging
import math
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from r23d_jax.checkpoint.checksums import leaf_table, named_leaves
from r23d_jax.config import UserError
from r23d_jax.runtime import disk, distributed, parallel
from r23d_jax.weights import compare

BEST_METRIC = "val/top1_video"

# Suffixes of step folders that are no longer checkpoints: one being replaced, and one found damaged.
REPLACED, DAMAGED = ".replaced", ".damaged"


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another network; the message names it and the remedy."""


class NewestAndBest:
    """Orbax's preservation policy: keeps the newest `keep` checkpoints, and the best (the newer of two equals)."""

    def __init__(self, keep: int):
        self._keep = keep
        self._scores: dict[int, float] = {}

    def set_score(self, step: int, score: float | None) -> None:
        """None and NaN mean not evaluated."""
        self._scores.pop(step, None)
        if score is not None and math.isfinite(score):
            self._scores[step] = score

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> list[bool]:
        """One answer per checkpoint, in their order."""
        del context
        steps = [info.step for info in checkpoints]
        kept = set(sorted(steps)[-self._keep :])
        scored = [step for step in steps if step in self._scores]
        if scored:
            kept.add(max(scored, key=lambda step: (self._scores[step], step)))
        return [step in kept for step in steps]


class Store:
    """Checkpoints `root/<step>/`, each a few trees of arrays and one JSON object, the meta.

    `leaves` (see `checksums.leaf_table`) and a checksum of the meta are added to it. In a job of several processes all
    must call every method together.

    Args:
      root: the folder, absolute.
      policy: decides what to keep; None opens an existing folder read-only.
      common: whether all processes see the same folder, and write to it together. Else each has one of its own, and
        only process 0 writes, whole arrays, and reads.
    """

    def __init__(self, root: Path, policy: NewestAndBest | None = None, *, common: bool = True):
        self.root = root
        self._writes = policy is not None
        self._apart = not common
        own = jax.process_index()
        self._changes = self._apart or own == 0  # renames and removes what is in `root`
        with contextlib.ExitStack() as stack:
            stack.enter_context(_SILENCE)
            options = ocp.CheckpointManagerOptions(read_only=True)
            if policy is not None:
                with disk.writing(root):
                    root.mkdir(parents=True, exist_ok=True)
                self.tidy()
                options = ocp.CheckpointManagerOptions(
                    preservation_policy=policy, enable_async_checkpointing=True, create=not self._apart
                )
            if self._apart:  # for Orbax, each process is a job of one; it does not create the folder of such a job
                options.multiprocessing_options = ocp.options.MultiprocessingOptions(
                    primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
                )
            self._manager = ocp.CheckpointManager(root, options=options)
            self._until_closed = stack.pop_all()

    def steps(self) -> list[int]:
        """Newest first, intact or damaged; an empty folder is not a checkpoint."""
        self._manager.reload()
        steps = sorted(self._manager.all_steps(), reverse=True)
        return [step for step in steps if any((self.root / str(step)).iterdir())]

    def write(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Starts writing; returns once the arrays have been copied off the devices.

        An existing checkpoint of that step is removed once the new one is complete.

        Raises:
          CheckpointError: if this write, or the one before it, failed.
        """
        sealed = _seal({**meta, "leaves": leaf_table(items), "step": step})
        if self._apart:
            items = parallel.on_every_host(items)  # Orbax refuses a jax.Array of one process in a job of several
            if jax.process_index() > 0:
                return
        self.wait()
        try:
            if step in self.steps():
                self.rename(step, REPLACED)
            trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            args = ocp.args.Composite(meta=ocp.args.JsonSave(sealed), **trees)
            # force: Orbax silently skips a step older than the newest
            self._manager.save(step, args=args, force=True)
        except Exception as error:  # Orbax raises many kinds, a full disk among them
            raise self._write_error(error) from error

    def wait(self) -> None:
        """Returns when everything is on disk; raises CheckpointError if a write failed (earlier ones are intact)."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._write_error(error) from error
        if self._changes:
            for folder in self.root.glob(f"*{REPLACED}"):
                shutil.rmtree(folder)

    def close(self) -> None:
        """Ends Orbax's threads. Call `wait` first, or the newest checkpoint may be lost at exit."""
        with self._until_closed:
            self._manager.close()
            if self._writes:
                self._tidy_here()  # after a failed write, Orbax's threads may have kept writing

    def read_meta(self, step: int) -> dict[str, Any]:
        """The meta of a checkpoint; any exception means damage (see `damage`)."""
        meta = self._restore(step, {"meta": ocp.args.JsonRestore()})["meta"]
        seal = meta.pop("sha256")
        if _seal(meta)["sha256"] != seal:
            raise ValueError("wrong checksum: meta")
        return meta

    def read_score(self, step: int) -> float | None:
        """Video top-1 of a checkpoint; None if it was not evaluated, or is damaged."""
        try:
            return self.read_meta(step)["metrics"].get(BEST_METRIC)
        except Exception:  # reading the checkpoint reports it
            return None

    def read_items(
        self, step: int, abstract: dict[str, Any], shardings: dict[str, Any], meta: dict[str, Any]
    ) -> dict[str, Any]:
        """Reads the trees that `abstract` names, and verifies the checksum of every leaf.

        Raises:
          CheckpointError: if names, shapes or dtypes are not the checkpoint's. Any other exception means damage.
        """
        self._check_same_network(meta["leaves"], abstract, self.root / str(step))
        targets = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
        )
        trees = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
        restored = self._restore(step, trees)
        items = {name: restored[name] for name in targets}
        wrong = [name for name, row in leaf_table(items).items() if row != meta["leaves"][name]]
        if wrong:
            raise ValueError(f"wrong checksum: {', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}")
        return items

    def _restore(self, step: int, args: dict[str, Any]) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**args))
        except Exception:
            _SILENCE.failed = True
            raise

    def rename(self, step: int, ending: str) -> None:
        """Removes a checkpoint from the list of steps."""
        self._sync("listed")  # all must have seen it, or a process that comes late would not take part
        if self._changes:
            target = self.root / f"{step}{ending}"
            shutil.rmtree(target, ignore_errors=True)
            (self.root / str(step)).rename(target)
        self._sync("rename")
        self._manager.reload()

    def tidy(self) -> None:
        """Cleans up after a killed or failed write: unfinished and empty folders, an unfinished replacement."""
        self._tidy_here()
        self._sync("tidy")

    def _sync(self, name: str) -> None:
        """Makes all processes wait for the one that changes the common folder."""
        if not self._apart:
            distributed.sync(f"checkpoints: {name}")

    def _tidy_here(self) -> None:
        if self._changes and self.root.is_dir():
            for folder in sorted(self.root.iterdir()):  # "40" comes before "40.replaced"
                original = folder.with_suffix("")
                if ".orbax-checkpoint-tmp" in folder.name:
                    _remove_while_written(folder)
                elif folder.name.isdigit() and folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
                elif folder.suffix == REPLACED and original.exists():  # Orbax renames a complete one into place
                    shutil.rmtree(folder)
                elif folder.suffix == REPLACED:
                    folder.rename(original)

    def _write_error(self, error: Exception) -> CheckpointError:
        _SILENCE.failed = True
        self.tidy()  # frees the space of the unfinished write, and restores the checkpoint it was to replace
        self._manager.reload()
        full = "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error)
        reason = "the disk is full" if full else _first_line(error)
        return CheckpointError(
            f"a checkpoint could not be written to {self.root}: {reason}. Earlier checkpoints are intact; make room "
            "and run the same command again."
        )

    @staticmethod
    def _check_same_network(stored: dict[str, list], abstract: dict[str, Any], path: Path) -> None:
        wanted = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named_leaves(abstract)}
        trees = tuple(f"{name}/" for name in abstract)
        found = {name: f"{row[1]}{row[0]}" for name, row in stored.items() if name.startswith(trees)}
        problems = compare.differences(found, wanted)
        if problems:
            raise CheckpointError(
                f"checkpoint {path} is of another network or optimizer than this config describes; use the config it "
                f"was trained with, or another --workdir:\n{compare.listed(problems)}"
            )


def damage(error: Exception, path: Path) -> str:
    """Why a checkpoint could not be read, in one line.

    Raises:
      CheckpointError: if the cause is not the checkpoint itself, so that an older one would not help.
    """
    if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE):
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        raise CheckpointError(f"checkpoint {path} does not fit into memory: {_first_line(error)}") from error
    return _first_line(error)


class _Silence:
    """Keeps Orbax quiet while any store is open, and restores the process when the last one closes.

    Orbax logs every save, and every failure at length, though it also raises. When one array of several fails, it drops
    the coroutines of the others, and each would print a traceback or a warning. They may live until their reads end, so
    after a failure their tracebacks are kept back until the process ends.

    Attributes:
      failed: whether a read or a write has failed since the first store was opened.
    """

    def __init__(self) -> None:
        self._lock, self._depth, self._undo = threading.Lock(), 0, contextlib.ExitStack()
        self.failed, self._dropped = False, 0
        self._kept: object = None  # what shows reports after the first failure, once it is installed

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth > 1:
                return
            for name, keeps in (("absl", lambda record: "orbax" not in record.pathname), ("asyncio", _not_dropped)):
                logging.getLogger(name).addFilter(keeps)
                self._undo.callback(logging.getLogger(name).removeFilter, keeps)
            self._undo.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            self._undo.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
            sys.unraisablehook = functools.partial(self._show, sys.unraisablehook)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth > 0:
                return
            if self.failed:
                self._await_dropped()
            self._undo.close()
            if self.failed and sys.unraisablehook is not self._kept:
                sys.unraisablehook = self._kept = functools.partial(self._show, sys.unraisablehook)
            self.failed = False

    def _show(self, show: Callable[[Any], object], unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        dropped = code is not None and "orbax" in code.co_filename
        too_late = unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed"
        self._dropped += dropped or too_late
        if not (dropped or too_late):
            show(unraisable)

    def _await_dropped(self) -> None:
        """Waits until the dropped reads and writes, which end a moment after the failure, report nothing more."""
        seen = -1
        while seen != self._dropped:
            seen = self._dropped
            gc.collect()
            time.sleep(0.1)


_SILENCE = _Silence()


def _remove_while_written(folder: Path) -> None:
    """Removes a folder that Orbax's other threads may keep filling for a moment after the first failure."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)
        if not folder.exists():
            return


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _seal(meta: dict[str, Any]) -> dict[str, Any]:
    return meta | {"sha256": hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()}


def _not_dropped(record: logging.LogRecord) -> bool:
    """Drops asyncio's report about each array that was abandoned because another one could not be written."""
    return "was never retrieved" not in record.getMessage()
