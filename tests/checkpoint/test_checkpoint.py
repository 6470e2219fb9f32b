"""Checkpoints: identity, damage of every kind, what is kept, other topologies, and a network out of one."""

import dataclasses
import functools
import gc
import json
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import r23d_jax
from r23d_jax import config
from r23d_jax.checkpoint.checkpoint import Checkpoints, load_checkpoint
from r23d_jax.checkpoint.state import TrainState
from r23d_jax.checkpoint.store import BEST_METRIC, CheckpointError
from r23d_jax.models.functional import split_model
from r23d_jax.runtime import parallel
from tests.training.tiny import NUM_CLASSES, start, tiny_config

Shardings = TrainState


def state_at(step: int, fsdp: int = 1) -> tuple[TrainState, Shardings]:
    """A state without a network: two parameters, and an optimizer state that is not made of dicts."""
    params = {"a": jax.random.normal(jax.random.key(step), (64, 512)), "b": {"c": jnp.arange(5.0)}}
    state = TrainState(jnp.asarray(step, jnp.int32), params, {"mean": jnp.ones(3)}, (params["b"], (jnp.zeros(()),)), {})
    shardings = parallel.state_shardings(state, parallel.make_mesh(fsdp))
    return jax.device_put(state, shardings), shardings


def assert_same(ours: TrainState, theirs: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def saved(workdir: Path, *scores: float | None, keep: int = 2) -> None:
    """Checkpoints 1, 2, ... with these video top-1; None is not evaluated."""
    checkpoints = Checkpoints(workdir, keep, log=lambda line: None)
    for step, score in enumerate(scores, start=1):
        checkpoints.save(state_at(step)[0], {"note": f"step {step}"}, None if score is None else {BEST_METRIC: score})
    checkpoints.close()


def steps_in(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def restore(workdir: Path, fsdp: int = 1) -> tuple[TrainState | None, dict, list[str]]:
    lines: list[str] = []
    state, shardings = state_at(0, fsdp=fsdp)
    checkpoints = Checkpoints(workdir, 2, log=lines.append)
    try:
        found = checkpoints.restore_latest(shardings, state)
    finally:
        checkpoints.close()
    return (found[0], found[1], lines) if found else (None, {}, lines)


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_what_is_saved_comes_back_with_its_meta(tmp_path: Path) -> None:
    assert restore(tmp_path)[0] is None
    saved(tmp_path, 0.5)
    state, meta, lines = restore(tmp_path)
    assert state is not None
    assert_same(state, state_at(1)[0])
    assert meta["note"] == "step 1" and meta["metrics"] == {BEST_METRIC: 0.5} and not lines


def test_another_topology_reads_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, log=lambda line: None)
    checkpoints.save(state_at(1, fsdp=8)[0], {})
    checkpoints.close()
    state, _, _ = restore(tmp_path, fsdp=2)
    assert state is not None
    assert_same(state, state_at(1)[0])
    sharding = state.params["a"].sharding
    assert isinstance(sharding, NamedSharding) and sharding.spec == PartitionSpec(None, "fsdp")


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 0.1, 0.9, 0.3, None, 0.4)
    assert steps_in(tmp_path) == {"2", "4", "5"}
    saved(tmp_path / "not_a_number", float("nan"), 0.2, None, None, None)
    assert steps_in(tmp_path / "not_a_number") == {"2", "4", "5"}


def test_the_best_is_still_kept_by_the_next_process(tmp_path: Path) -> None:
    saved(tmp_path, 0.9, 0.1)
    checkpoints = Checkpoints(tmp_path, keep=1, log=lambda line: None)
    for step in (3, 4):
        checkpoints.save(state_at(step)[0], {})
    checkpoints.close()
    assert steps_in(tmp_path) == {"1", "4"}


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    saved(tmp_path, None, None)
    checkpoints = Checkpoints(tmp_path, log=lambda line: None)
    checkpoints.save(state_at(2)[0], {"note": "evaluated"}, {BEST_METRIC: 0.7})
    checkpoints.close()
    _, meta, _ = restore(tmp_path)
    assert meta["note"] == "evaluated" and meta["metrics"] == {BEST_METRIC: 0.7}
    assert steps_in(tmp_path) == {"1", "2"}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, cut, os.remove])
def test_a_damaged_newest_one_falls_back_and_says_so(damage, tmp_path: Path) -> None:
    saved(tmp_path, None, None)
    damage(largest_file(tmp_path / "checkpoints" / "2"))
    state, meta, lines = restore(tmp_path)
    assert state is not None
    assert_same(state, state_at(1)[0])
    assert meta["note"] == "step 1"
    assert len(lines) == 1 and "checkpoints/2 is damaged" in lines[0] and "resuming from step 1" in lines[0]
    assert steps_in(tmp_path) == {"1", "2.damaged"}


def test_a_flipped_byte_in_the_meta_is_damage(tmp_path: Path) -> None:
    saved(tmp_path, None, None)
    (path,) = (p for p in (tmp_path / "checkpoints" / "2" / "meta").iterdir() if "step 2" in p.read_text())
    path.write_text(path.read_text().replace("step 2", "step 3"))
    _, meta, lines = restore(tmp_path)
    assert meta["note"] == "step 1" and "wrong checksum: meta" in lines[0]


def test_all_damaged_is_an_error_that_lists_them(tmp_path: Path) -> None:
    saved(tmp_path, None, None)
    for step in ("1", "2"):
        flip(largest_file(tmp_path / "checkpoints" / step))
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint in .* is intact:.*2: .*1: .*another --workdir"):
        restore(tmp_path)
    assert steps_in(tmp_path) == {"1", "2"}  # nothing is thrown away


def test_what_a_killed_run_leaves_is_settled(tmp_path: Path) -> None:
    saved(tmp_path, None)
    root = tmp_path / "checkpoints"
    (root / "2.orbax-checkpoint-tmp").mkdir()
    (root / "2.orbax-checkpoint-tmp" / "half").write_text("x")
    (root / "3").mkdir()
    (root / "1").rename(root / "1.replaced")  # killed before the new one was whole
    state, _, _ = restore(tmp_path)
    assert state is not None and int(state.step) == 1
    assert steps_in(tmp_path) == {"1"}


def test_a_full_disk_is_named_and_earlier_checkpoints_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, None)
    checkpoints = Checkpoints(tmp_path, log=lambda line: None)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._store._manager, "save", full)
    with pytest.raises(CheckpointError, match="the disk is full. Earlier checkpoints are intact; make room"):
        checkpoints.save(state_at(2)[0], {})
    checkpoints.close()
    assert restore(tmp_path)[1]["note"] == "step 1"


def test_another_network_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path, None)
    state, shardings = state_at(0)
    other = dataclasses.replace(state, params={"a": jnp.zeros((64, 500)), "d": jnp.zeros(1)})
    checkpoints = Checkpoints(tmp_path, log=lambda line: None)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore_latest(shardings, other)
    checkpoints.close()
    message = str(caught.value)
    assert "is of another network or optimizer" in message and "use the config it was trained with" in message
    assert "params/a: float32[64, 512], expected float32[64, 500]" in message
    assert "params/d: missing" in message and "params/b/c: not in this network" in message


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a real network: 1 is the better one, 2 the newer one."""
    workdir = tmp_path_factory.mktemp("run")
    cfg = tiny_config("r2plus3d", "vit")
    cfg.train.ema_decay = 0.9
    state, _, _, _ = start(cfg)
    state = dataclasses.replace(state, ema=jax.tree.map(lambda x: x + 1, state.params))
    meta = {
        "config": dataclasses.asdict(cfg),
        "class_names": ["a", "b", "c"],
        "preprocessing": dataclasses.asdict(config.preprocessing(cfg.data)),
    }
    checkpoints = Checkpoints(workdir, log=lambda line: None)
    for step, score in ((1, 0.9), (2, 0.2)):
        checkpoints.save(dataclasses.replace(state, step=jnp.asarray(step)), meta, {BEST_METRIC: score})
    checkpoints.close()
    return workdir


def test_a_network_needs_nothing_but_its_checkpoint(run_folder: Path) -> None:
    loaded = load_checkpoint(run_folder)
    assert (loaded.step, loaded.class_names, loaded.metrics) == (1, ("a", "b", "c"), {BEST_METRIC: 0.9})
    cfg = tiny_config("r2plus3d", "vit")
    assert loaded.preprocessing == config.preprocessing(cfg.data)
    state, _, _, _ = start(cfg)
    _, params, batch_stats = split_model(loaded.model)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), params, state.params)  # the moving average
    jax.tree.map(np.testing.assert_array_equal, batch_stats, state.batch_stats)
    logits = jax.jit(lambda model, clip: model(clip))(loaded.model, jnp.zeros((1, 4, 16, 16, 3)))
    assert logits.shape == (1, NUM_CLASSES) and jnp.isfinite(logits).all()


@pytest.mark.parametrize(
    ("path", "which", "step", "title"),
    [
        ("", "latest", 2, "step 2, the last checkpoint"),
        ("checkpoints", "best", 1, "step 1, the best checkpoint, video top-1 90.00 %"),
        ("checkpoints/2", "best", 2, "checkpoints/2"),
    ],
)
def test_ways_to_say_which(run_folder: Path, path: str, which: str, step: int, title: str) -> None:
    loaded = load_checkpoint(run_folder / path, which)
    assert loaded.step == step and loaded.title.endswith(title)


def test_a_run_without_an_evaluation_says_so(run_folder: Path, tmp_path: Path) -> None:
    state, meta = start(tiny_config("r2d"))[0], json.loads((run_folder / "checkpoints/1/meta/metadata").read_text())
    meta = {name: meta[name] for name in ("class_names", "preprocessing")} | {
        "config": dataclasses.asdict(tiny_config("r2d"))
    }
    for step, words in ((1, "the only checkpoint"), (2, "the last checkpoint, because none was evaluated")):
        checkpoints = Checkpoints(tmp_path, log=lambda line: None)
        checkpoints.save(dataclasses.replace(state, step=jnp.asarray(step)), meta)
        checkpoints.close()
        assert load_checkpoint(tmp_path).chosen == words


def test_loading_passes_over_damage_and_changes_nothing(run_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    flip(largest_file(copy / "checkpoints" / "1" / "ema"))
    before = steps_in(copy)
    lines: list[str] = []
    assert load_checkpoint(copy, log=lines.append).step == 2
    assert "checkpoints/1 is damaged (" in lines[0] and steps_in(copy) == before


def test_the_best_one_with_a_damaged_meta_is_told(run_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    meta = copy / "checkpoints" / "1" / "meta" / "metadata"
    meta.write_text(meta.read_text()[:-20])
    lines: list[str] = []
    assert load_checkpoint(copy, log=lines.append).step == 2
    assert "checkpoints/1 is damaged (" in lines[0] and "using" in lines[0]


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint in .*: give the --workdir of a run"):
        r23d_jax.load_model(tmp_path)
    with pytest.raises(CheckpointError, match="which='newest': known: best, latest"):
        load_checkpoint(tmp_path, "newest")


@pytest.mark.parametrize("names", [("1", "2"), ("first", "second", "third", "fourth")])
def test_a_folder_of_runs_is_no_run(names: tuple[str, ...], tmp_path: Path) -> None:
    """Folders called 1 and 2 are no checkpoints of steps 1 and 2 if they hold checkpoints themselves."""
    root = tmp_path / "2026"
    for name in names:
        (root / name / "checkpoints" / "7").mkdir(parents=True)
    some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    with pytest.raises(CheckpointError, match=rf"/2026 is a folder of runs: give one of them \({some}\)$"):
        load_checkpoint(root)
    (root / "3" / "checkpoints").mkdir(parents=True)  # of a run that has saved nothing yet
    with pytest.raises(CheckpointError, match="there is no checkpoint in .*/3: give the --workdir of a run"):
        load_checkpoint(root / "3")


def test_the_meta_is_readable_without_this_package(run_folder: Path) -> None:
    (meta,) = (p for p in (run_folder / "checkpoints" / "1" / "meta").iterdir() if p.name == "metadata")
    content = json.loads(meta.read_text())
    assert content["class_names"] == ["a", "b", "c"] and "params/stem/conv/kernel" in "".join(content["leaves"])


def process_state() -> list:
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    return [sys.unraisablehook, warnings.filters, *warnings.filters, *(tuple(logger.filters) for logger in loggers)]


def test_the_process_is_left_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # another test may have read what is damaged
    before = process_state()
    saved(tmp_path, 0.5, 0.6)
    assert process_state() == before
    largest_file(tmp_path / "checkpoints" / "2").write_bytes(b"")
    first, second = Checkpoints(tmp_path / "a"), Checkpoints(tmp_path / "b")
    assert sys.unraisablehook is not before[0]
    first.close()
    first.close()  # a second time changes nothing
    assert sys.unraisablehook is not before[0], "the other one is open"
    second.close()
    assert process_state() == before
    assert restore(tmp_path)[1]["note"] == "step 1"
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Exception, match="file"):
        Checkpoints(tmp_path / "file")
    gc.collect()
    assert process_state()[1:] == before[1:]
    assert "Traceback" not in capfd.readouterr().err


def test_a_read_that_ends_after_the_failure_prints_nothing(
    run_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    shutil.copytree(run_folder, tmp_path / "run")
    for which, damaged in (("best", True), ("best", True), ("latest", False)):
        if damaged:
            largest_file(tmp_path / "run" / "checkpoints" / "1" / "ema").write_bytes(b"")
        assert load_checkpoint(tmp_path / "run", which, log=lambda line: None).step == 2
        # As a library does
        monkeypatch.setattr(
            sys, "unraisablehook", functools.partial(lambda show, report: show(report), sys.unraisablehook)
        )

    code = """
async def read():
    try:
        await Never()
    except GeneratorExit:
        raise ValueError("the event loop has ended")
class Never:
    def __await__(self):
        yield
"""
    for folder, shown in (("orbax", False), ("mine", True)):
        names: dict = {}
        exec(compile(code, f"/site-packages/{folder}/read.py", "exec"), names)
        reading = names["read"]()
        reading.send(None)
        del reading
        assert ("the event loop has ended" in capfd.readouterr().err) is shown
