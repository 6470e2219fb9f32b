"""A study whose frames stay on the device: the same clips and scores as the project's own loader and evaluation."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from benchmarks import resident
from r23d_jax import config
from r23d_jax.checkpoint.checkpoint import save_model
from r23d_jax.config import Config, UserError
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.read.views import make_views
from r23d_jax.data.sources import open_index
from r23d_jax.evaluation.evaluate import evaluate
from r23d_jax.evaluation.fusion import fuse
from r23d_jax.evaluation.result import EvalResult, load_evaluation
from r23d_jax.evaluation.scores import Scores
from r23d_jax.evaluation.step import make_eval_step
from r23d_jax.models.functional import split_model
from r23d_jax.runtime import disk, parallel
from r23d_jax.study.grid import Cell
from r23d_jax.study.run import LOCK, OUTCOME, Outcome, read_outcome
from tests.training.tiny import tiny_config

STUDY = """
import copy
from r23d_jax.config import from_json
from r23d_jax.study.grid import Study
BASE = from_json({text!r})
def get_study(arg):
    heads = {{"pool": {{}}, "ViT": {{"model.head.kind": "vit", "model.head.num_heads": 2}}}}
    return Study("Small", copy.deepcopy(BASE), {{"head": heads, "seed": {{"0": {{"seed": 0}}, "1": {{"seed": 1}}}}}})
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of four videos, of 11 to 14 frames; the last video of each class is tested."""
    root, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    lists = root / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{k + 1} {name}\n" for k, name in enumerate("ABCD")))
    train, test = [], []
    for k, name in enumerate("ABCD"):
        for group in range(1, 5):
            video = f"v_{name}_g{group:02d}_c01"
            (test if group == 4 else train).append(f"{name}/{video}.avi {k + 1}\n")
            folder = root / "frames" / name / video
            folder.mkdir(parents=True)
            blocks = rng.integers(0, 256, (10 + group, 6, 8, 3), np.uint8)
            for number, picture in enumerate(blocks, start=1):
                large = cv2.resize(picture, (32, 24), interpolation=cv2.INTER_LINEAR)
                assert cv2.imwrite(str(folder / f"{number:05d}.png"), large)
    for path in (root / "frames").rglob("*.png"):  # gray, they may serve as flow, x above y
        gray = root / "flow" / path.relative_to(root)
        gray.parent.mkdir(parents=True, exist_ok=True)
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert picture is not None and cv2.imwrite(str(gray), picture)
    (root / "flow" / "prepare.json").write_text(json.dumps({"flow": "dis", "flow_bound": 20.0, "short_side": 12}))
    (lists / "trainlist01.txt").write_text("".join(train))
    (lists / "testlist01.txt").write_text("".join(test))
    return root


def small(videos: Path, source: str = "rgb") -> Config:
    cfg, root = tiny_config("r2plus3d"), videos
    if source == "flow":
        cfg, videos = config.use_flow(cfg), videos / "flow"
    cfg.data.source, cfg.data.root, cfg.data.lists = "frames", str(videos / "frames"), str(root / "lists")
    cfg.data.input, cfg.data.num_frames, cfg.data.frame_stride = source, 8, 2
    cfg.data.short_side, cfg.data.crop_size, cfg.data.color_jitter = 24, 16, 0.3
    if source == "flow":
        cfg.data.short_side, cfg.data.crop_size, cfg.data.color_jitter = 12, 10, 0.0
    cfg.data.crop, cfg.train.ema_decay = "multi_scale", 0.0
    cfg.train.epochs, cfg.train.global_batch_size = 2.0, 8
    cfg.eval.views, cfg.eval.num_clips, cfg.eval.batch_size = "uniform", 3, 10
    return config.validate(cfg)


def write_study(folder: Path, cfg: Config) -> str:
    path = folder / "small_study.py"
    path.write_text(STUDY.format(text=config.to_json(cfg)))
    return str(path)


@pytest.mark.long
def test_rows_that_differ_in_seed_share_a_program_and_a_rerun_is_equal(tmp_path: Path, videos: Path) -> None:
    path = write_study(tmp_path, small(videos))
    before = resident._compiled.cache_info().misses
    assert resident.run(path, tmp_path / "a", "", [], 60) == 0
    assert resident._compiled.cache_info().misses == before + 2  # a head each, for two seeds
    assert resident.run(path, tmp_path / "b", "ViT_seed1", [], 60) == 0
    first, second = (load_evaluation(tmp_path / name / "ViT_seed1") for name in "ab")
    other = load_evaluation(tmp_path / "a" / "ViT_seed0")
    assert first is not None and second is not None and other is not None
    np.testing.assert_array_equal(first.logits, second.logits)
    assert np.abs(first.logits - other.logits).max() > 1e-3
    outcome = read_outcome(tmp_path / "a" / "pool_seed0")
    assert outcome is not None and outcome.status == "done" and outcome.protocol["num_clips"] == 3
    page = (tmp_path / "a" / "results.md").read_text()
    assert "ViT" in page and "pool" in page


def test_the_number_of_steps_does_not_depend_on_what_is_left(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a training that fails ends neither the others nor the page."""
    path = Path(write_study(tmp_path, small(videos)))
    two = """{"classes": {"two": {"data.classes": ("A", "B")}, "four": {}}}"""
    path.write_text(
        path.read_text().partition("    heads = ")[0] + f'    return Study("S", copy.deepcopy(BASE), {two})\n'
    )

    def train(cfg: Config, store: object, train: object, test: object, num_steps: int) -> None:
        raise UserError(f"{num_steps} steps")

    monkeypatch.setattr(resident, "_train", train)
    for only, count in (("", 2), ("two", 1)):
        assert resident.run(str(path), tmp_path / "w", only, [], 60) == 1
        out = capsys.readouterr().out
        assert out.count("    failed: 3 steps\n") == count  # two epochs of twelve videos, eight at a time
        assert f"\n{count} failed: {tmp_path / 'w' / 'results.md'}\n" in out
    assert (tmp_path / "w" / "results.md").exists()


def test_rows_of_several_folders_are_trained_one_folder_after_another(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(write_study(tmp_path, small(videos)))
    before, after = (config.flat(dataclasses.asdict(small(videos, source))) for source in ("rgb", "flow"))
    changed = {name: value for name, value in after.items() if value != before[name]}
    flow = {name: tuple(value) if isinstance(value, list) else value for name, value in changed.items()}
    rows = {"RGB": {}, "flow": flow | {"train.epochs": 4.0}}
    inputs = f"""{{"input": {rows!r}, "seed": {{"0": {{"seed": 0}}, "1": {{"seed": 1}}}}}}"""
    path.write_text(
        path.read_text().partition("    heads = ")[0] + f'    return Study("S", copy.deepcopy(BASE), {inputs})\n'
    )
    trained = []

    def train(cfg: Config, store: resident.FrameStore, train: object, test: object, num_steps: int) -> None:
        trained.append((cfg.data.input, cfg.seed, store.frames.shape[1:], num_steps))
        raise disk.InUse("enough")

    monkeypatch.setattr(resident, "_train", train)
    monkeypatch.setattr(resident, "write_results", lambda *arguments: tmp_path / "results.md")
    assert resident.run(str(path), tmp_path / "w", "", [], 60) == 0
    rows = ("flow", (12, 32, 2), 6), ("rgb", (24, 32, 3), 3)  # twelve videos, eight at a time
    assert trained == [(name, seed, shape, steps) for name, shape, steps in rows for seed in (0, 1)]


def test_nothing_starts_after_the_time(tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resident.run(write_study(tmp_path, small(videos)), tmp_path / "w", "", [], 0.0) == 0
    out = capsys.readouterr().out
    assert "the time is over before training 1 of 4; call again to continue" in out
    assert "\n4 left: " in out


def test_a_training_that_a_study_is_working_on_is_left_alone(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []

    def run_cell(cell: Cell, workdir: Path, *arguments: object) -> float:
        trained.append(cell.name)
        with pytest.raises(disk.InUse), disk.hold(workdir / cell.name, LOCK):  # a study of it is kept out, too
            pass
        if len(trained) == 1:  # meanwhile a study does another one
            other = tmp_path / "w" / "ViT_seed0"
            other.mkdir()
            outcome = dataclasses.asdict(Outcome("done", 1.0, {}, {}, 1, 1.0))
            (other / OUTCOME).write_text(json.dumps(outcome))
        return 1.0

    monkeypatch.setattr(resident, "_run_cell", run_cell)
    monkeypatch.setattr(resident, "write_results", lambda *arguments: tmp_path / "results.md")
    held = tmp_path / "w" / "pool_seed1"
    held.mkdir(parents=True)
    with disk.hold(held, LOCK):
        assert resident.run(write_study(tmp_path, small(videos)), tmp_path / "w", "", [], 60) == 0
    assert trained == ["pool_seed0", "ViT_seed1"]
    out = capsys.readouterr().out
    assert f"skipped: {held}: process {os.getpid()} on " in out and "is at work there" in out
    assert "[2/4] ViT_seed0\n    another process has done it" in out


@pytest.mark.slow
@pytest.mark.parametrize("source", [pytest.param("rgb", marks=pytest.mark.long), "rgb_diff", "flow"])
def test_the_scores_are_those_of_the_evaluation_from_disk(videos: Path, source: str) -> None:
    cfg = small(videos, source)
    test = open_index(cfg.data, "test")
    store = resident.FrameStore([test], source == "flow")
    assert store.frames.shape[1:] == ((12, 32, 2) if source == "flow" else (24, 32, 3))
    made = resident._compiled(config.to_json(cfg), len(test.class_names), 4.0, 8)
    state = made.initialize(np.uint32(3))
    found = resident._evaluate(cfg, store, test, made, state)
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    network, params, batch_stats = split_model(
        resident.create_configured_model(dataclasses.replace(cfg, seed=3), len(test.class_names))
    )
    step = make_eval_step(network, config.preprocessing(cfg.data), mesh)
    wanted = evaluate(step, params, batch_stats, test, cfg, mesh)
    assert wanted is not None
    np.testing.assert_array_equal(found.num_views, wanted.num_views)
    np.testing.assert_array_equal(found.names, wanted.names)
    np.testing.assert_allclose(found.logits, wanted.logits, atol=0.02)  # a level of a byte, by rounding
    assert np.abs(wanted.logits).max() > 0.2


@pytest.mark.slow
def test_a_training_starts_from_weights(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = small(videos)
    train, test = open_index(cfg.data, "train"), open_index(cfg.data, "test")
    other = dataclasses.replace(cfg, seed=5)
    save_model(tmp_path / "weights", resident.create_configured_model(other, 4), cfg, tuple(train.class_names))
    started = dataclasses.replace(cfg, init_from=str(tmp_path / "weights"))
    batches = list(resident._train_batches(cfg, (store := resident.FrameStore([train, test])), train, 2))
    monkeypatch.setattr(resident, "_train_batches", lambda *arguments: iter(batches))
    resident._compiled.cache_clear()
    found, wanted = (resident._train(each, store, train, test, 3).logits for each in (started, other))
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert np.abs(wanted).max() > 0.2
    assert resident._compiled.cache_info().misses == 1  # the same program, wherever it starts
    assert f" values from {tmp_path / 'weights'}" in capsys.readouterr().out


def test_two_streams_are_added_from_the_scores_of_their_trainings(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(write_study(tmp_path, small(videos)))
    rows = """{"input": {"a": {}, "b": {}, "missing": {"init_from": "weights.b"},
        "both": {"fusion.first": "a", "fusion.second": "b", "fusion.weight": 0.75},
        "half": {"fusion.first": "a", "fusion.second": "b", "fusion.choice": "sum"},
        "other": {"fusion.first": "a", "fusion.second": "missing"}}}, files={"weights.b": File("weights of b")}"""
    text = path.read_text().partition("    heads = ")[0] + f'    return Study("S", copy.deepcopy(BASE), {rows})\n'
    path.write_text(text.replace("import Study", "import File, Study"))

    def train(
        cfg: Config, store: resident.FrameStore, train: VideoIndex, test: VideoIndex, num_steps: int
    ) -> EvalResult:
        scores = Scores(test, make_views(test.num_frames, config.preprocessing(cfg.data), cfg.eval))
        rng = np.random.default_rng(len(list((tmp_path / "w").iterdir())))  # others for each training
        rows = np.arange(3 * len(test), dtype=np.int32)
        scores.add(rng.standard_normal((len(rows), 4)).astype(np.float32), rows, np.ones(len(rows), np.float32))
        return scores.result(cfg)

    monkeypatch.setattr(resident, "_train", train)
    assert resident.run(str(path), tmp_path / "v", "both", [], 60) == 0  # before its streams
    assert "both\n    waits for a and b\n1 left: " in capsys.readouterr().out
    assert resident.run(str(path), tmp_path / "w", "", [], 60) == 0
    out = capsys.readouterr().out
    assert "left out: missing: needs weights of b: --set weights.b=PATH" in out
    assert "other\n    waits for missing\n" in out and "\n4 done, 1 left, 1 left out: " in out
    first, second, both, half = (load_evaluation(tmp_path / "w" / name) for name in ("a", "b", "both", "half"))
    assert first and second and both and half
    assert np.abs(first.logits - second.logits).max() > 0.1
    np.testing.assert_array_equal(both.logits, fuse(first, second, 0.75, "softmax").logits)
    np.testing.assert_array_equal(half.logits, fuse(first, second, 0.5, "softmax").logits)
    assert "| both |" in (tmp_path / "w" / "results.md").read_text()

    shutil.rmtree(tmp_path / "w" / "both")  # neither lists, frames nor weights are needed to add again
    assert resident.run(str(path), tmp_path / "w", "both", ["data.lists=gone", "data.root=gone"], 60) == 0
    (tmp_path / "w" / "b" / "evaluation.npz").unlink()
    shutil.rmtree(tmp_path / "w" / "both")
    assert resident.run(str(path), tmp_path / "w", "both", [], 60) == 1
    missing = f"failed: {tmp_path / 'w' / 'b'}: has no evaluation.json and evaluation.npz; run it again"
    assert missing in capsys.readouterr().out


def test_training_clips_are_frames_of_their_video_inside_the_picture(videos: Path) -> None:
    cfg = small(videos)
    train = open_index(cfg.data, "train")
    store = resident.FrameStore([train])
    first, owner = store.first(train), np.repeat(np.arange(len(train)), train.num_frames)
    batches = list(resident._train_batches(cfg, store, train, 6))  # four epochs
    for batch in batches:
        rows = owner[batch["video"]]
        assert (rows == rows[:, :1]).all()
        np.testing.assert_array_equal(train.labels[rows[:, 0]], batch["label"])
        top, left, height, width = batch["window"][:, 0].T
        assert (top >= 0).all() and (top + height <= store.size[0]).all() and (left + width <= store.size[1]).all()
    seen = np.concatenate([owner[batch["video"][:, 0]] for batch in batches])
    assert len(set(seen[: len(train)].tolist())) == len(train)  # once an epoch
    again = next(iter(resident._train_batches(cfg, store, train, 1)))
    jax.tree.map(np.testing.assert_array_equal, again, batches[0])
    assert first[0] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data.crop": "center"}, "config.data.crop='center': only 'multi_scale' is known here; use study"),
        ({"init_from": "gone"}, "config.init_from=gone: there is no such file or folder"),
        (
            {"fusion.first": "pool", "fusion.second": "pool", "fusion.choice": "held_out"},
            "config.fusion.choice='held_out' is not known here; use study",
        ),
    ],
)
def test_what_it_does_not_know_is_left_out_and_refused_alone(
    tmp_path: Path,
    videos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, object],
    message: str,
) -> None:
    path = Path(write_study(tmp_path, small(videos)))
    rows = f"""{{"row": {{"pool": {{}}, "other": {changed!r}}}}}"""
    text = path.read_text().partition("    heads = ")[0] + f'    return Study("S", copy.deepcopy(BASE), {rows})\n'
    path.write_text(text)
    with pytest.raises(UserError, match="^nothing can be run here: other: ") as refused:
        resident.run(str(path), tmp_path / "w", "other", [], 60)
    assert message in str(refused.value) and not (tmp_path / "w").exists()
    monkeypatch.setattr(resident, "_run_cell", lambda *arguments: 1.0)
    assert resident.run(str(path), tmp_path / "w", "", [], 60) == 0
    assert f"left out: other: {message}" in capsys.readouterr().out
