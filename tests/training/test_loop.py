"""Whole runs on a tiny set: stopped and resumed, diverged, fed with broken frames, evaluated again."""

import dataclasses
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import pytest

from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import load_checkpoint
from r23d_jax.commands import status
from r23d_jax.config import Config, TrainConfig, UserError
from r23d_jax.data.find.splits import read_list
from r23d_jax.data.find.video_names import group_of
from r23d_jax.data.make.synthetic import write_synthetic
from r23d_jax.data.sources import open_index
from r23d_jax.evaluation.card import evaluations
from r23d_jax.evaluation.result import EvalResult
from r23d_jax.evaluation.run import evaluate_checkpoint, score_checkpoint
from r23d_jax.evaluation.trained import load_model
from r23d_jax.runtime.journal import read_metrics
from r23d_jax.training import loop, meter
from r23d_jax.training.meter import TrainingDiverged
from tests.training.tiny import tiny_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 videos to train on, 12 to test on, of 6 classes."""
    root = tmp_path_factory.mktemp("data") / "set"
    write_synthetic(root, num_groups=3, clips_per_group=2, height=32, width=32, test_groups=1)
    return root


def config_for(root: Path) -> Config:
    """Two epochs of three steps, an evaluation after each, with everything random that a run can have."""
    cfg = tiny_config()
    cfg.data.root, cfg.data.lists = str(root / "frames"), str(root / "lists")
    cfg.data.short_side, cfg.data.color_jitter = 20, 0.2
    cfg.model.head.dropout, cfg.train.mixup, cfg.train.ema_decay = 0.3, 0.2, 0.9
    cfg.optimizer.schedule = "cosine"
    cfg.train.epochs, cfg.train.eval_every, cfg.train.log_every = 2.0, 1.0, 1
    cfg.eval.views, cfg.eval.num_clips = "uniform", 2
    cfg.checkpoint.every_steps = 2
    return cfg


def run(cfg: Config, workdir: Path) -> tuple[EvalResult | None, list[str]]:
    lines: list[str] = []
    return loop.train(cfg, workdir, log=lines.append), lines


def losses(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in read_metrics(workdir) if "train/loss" in row}


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvalResult]:
    """A run from start to end."""
    workdir = tmp_path_factory.mktemp("run")
    result, lines = run(config_for(dataset), workdir)
    assert result is not None and lines[0].startswith("running on CPU")
    return workdir, result


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run writes a report, which takes a fifth of its time."""
    monkeypatch.setattr(loop.report, "write_report", lambda workdir, *args, **options: workdir)


def test_a_run_leaves_what_it_promises(finished: tuple[Path, EvalResult]) -> None:
    workdir, result = finished
    assert sorted(losses(workdir)) == [1, 2, 3, 4, 5, 6]
    scores = [row["val/top1_video"] for row in read_metrics(workdir) if "val/top1_video" in row]
    assert len(scores) == 2 and scores[-1] == result.metrics["val/top1_video"]
    assert (workdir / "config.json").is_file() and list((workdir / "tensorboard").iterdir())
    page = (workdir / "report.html").read_text()
    assert "Grad-CAM of" in page and "data-clip=" in page, "this network is wrong about some videos"
    assert load_checkpoint(workdir, "latest").step == 6
    found = status.read_status(workdir)
    assert (found.verdict, found.step, found.num_steps, found.checkpoints[0]) == ("finished", 6, 6, 6)
    assert found.last == (6, scores[-1]) and [process.broken_videos for process in found.processes] == [0]
    assert "r2d_10, avgpool head, on CPU" in status.screen(found) and "24 training videos, 12 test" in found.data


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("stop_after", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    stop_after: int, dataset: Path, finished: tuple[Path, EvalResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by SIGTERM in the middle of an epoch, and where an evaluation is due."""
    add = loop.Meter.add

    def add_and_stop(meter, step: int, *rest) -> None:
        add(meter, step, *rest)
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Meter, "add", add_and_stop)
        result, lines = run(config_for(dataset), tmp_path)
    assert result is None
    assert f"stopped at step {stop_after} of 6; state saved in {tmp_path}" in lines
    assert load_checkpoint(tmp_path, "latest").step == stop_after
    found = status.read_status(tmp_path)
    assert (found.verdict, found.step) == ("stopped", stop_after)
    assert f"; the same command resumes from step {stop_after}" in status.screen(found)

    result, lines = run(config_for(dataset), tmp_path)
    assert f"resumed from step {stop_after} of 6 ({tmp_path})" in lines
    workdir, whole = finished
    assert result is not None and result.metrics == whole.metrics
    assert losses(tmp_path) == losses(workdir)
    assert checksums(tmp_path) == checksums(workdir)


@pytest.mark.usefixtures("unreported")
def test_a_failing_evaluation_does_not_lose_the_training_before_it(
    dataset: Path, finished: tuple[Path, EvalResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config_for(dataset)
    cfg.checkpoint.every_steps = 500

    def fail(*args, **options) -> None:
        raise UserError("too many of its videos are broken")

    lines: list[str] = []
    with monkeypatch.context() as patch, pytest.raises(UserError, match="too many of its videos"):
        patch.setattr(loop, "evaluate", fail)
        loop.train(cfg, tmp_path, log=lines.append)
    assert lines[-1] == f"the evaluation failed; the state of step 3 is saved in {tmp_path}"
    assert load_checkpoint(tmp_path, "latest").step == 3 and sorted(losses(tmp_path)) == [1, 2, 3]
    with monkeypatch.context() as patch, pytest.raises(UserError, match="too many of its videos"):
        patch.setattr(loop, "evaluate", fail)
        patch.setattr(loop, "_save", lambda *args: fail())
        loop.train(cfg, tmp_path / "full", log=lines.append)
    assert lines[-1].endswith("the state of step 3 cannot be saved: too many of its videos are broken")
    result, lines = run(cfg, tmp_path)
    assert f"resumed from step 3 of 6 ({tmp_path})" in lines
    assert result is not None and result.metrics == finished[1].metrics


@pytest.mark.usefixtures("unreported")
@pytest.mark.slow
def test_a_profile_and_the_wait_for_input(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meter, "STEPS_PER_REPORT", 2)
    cfg = config_for(dataset)
    cfg.profile, cfg.train.log_every, cfg.train.eval_every = "2:3", 3, 100.0
    cfg.checkpoint.every_steps = 100  # each writes a row
    run(cfg, tmp_path)
    said = capsys.readouterr().err
    assert "profile of steps 2 to 3: tensorboard --logdir" in said
    for name in ("*.xplane.pb", "perfetto_trace.json.gz"):  # TensorBoard's and Perfetto's
        (trace,) = (tmp_path / "profile").rglob(name)
        assert trace.stat().st_size > 0
    waits = re.findall(r"step (\d): (\d+\.\d)% of the time of the last 3 steps was waiting for input", said)
    assert [step for step, _ in waits] == ["3", "6"] and all(0 <= float(share) <= 100 for _, share in waits)
    assert sorted(losses(tmp_path)) == [3, 6]


@pytest.mark.slow
def test_compiled_programs_are_kept(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(loop.Meter, "add", lambda *args: os.kill(os.getpid(), signal.SIGTERM))  # one step is enough
    cfg = config_for(dataset)
    before = jax.config.values["jax_compilation_cache_dir"]
    try:
        run(cfg, tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    kept = sorted(file.name for file in (tmp_path / "compilation_cache").glob("*/*"))
    assert any(name.startswith("jit_step-") for name in kept)
    cfg.compilation_cache = False
    run(cfg, tmp_path / "without")
    assert not (tmp_path / "without" / "compilation_cache").exists()


def checksums(workdir: Path) -> dict[str, list]:
    """Of every leaf of the last state: parameters, statistics, the optimizer's state, the moving average."""
    return json.loads((workdir / "checkpoints" / "6" / "meta" / "metadata").read_text())["leaves"]


def test_a_complete_run_is_reported_again_without_a_step(dataset: Path, finished: tuple[Path, EvalResult]) -> None:
    workdir, whole = finished
    before = losses(workdir)
    result, lines = run(config_for(dataset), workdir)
    assert result is not None and result.metrics == whole.metrics
    assert any(line.startswith("report: ") for line in lines) and losses(workdir) == before


@pytest.mark.parametrize(
    ("group", "field", "value", "message"),
    [
        ("optimizer", "learning_rate", 0.5, r"config\.optimizer\.learning_rate=0\.5: .* complete, .* with 0\.01: give"),
        (
            "eval",
            "num_clips",
            3,
            r"config\.eval\.num_clips=3: .* evaluated with 2: add --mode=eval to evaluate it again$",
        ),
        ("train", "epochs", 1.0, r"config\.train\.epochs=1\.0: .* or a config\.train\.epochs above 2 to train on$"),
        (
            "data",
            "input",
            "rgb_diff",
            r"config\.data\.input='rgb_diff': .* trained with 'rgb': .*--config\.data\.input=rgb$",
        ),
    ],
)
def test_a_complete_run_is_not_the_result_of_other_settings(
    group: str, field: str, value: object, message: str, dataset: Path, finished: tuple[Path, EvalResult]
) -> None:
    cfg = config_for(dataset)
    setattr(getattr(cfg, group), field, value)
    before = (finished[0] / "config.json").read_bytes()
    with pytest.raises(UserError, match=message):
        run(cfg, finished[0])
    assert (finished[0] / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("videos", "every", "wanted"),
    [(100, 0.1, range(1, 11)), (50, 0.4, range(2, 11, 2)), (30, 1.0, (3, 6, 9))],
)
def test_evaluations_follow_the_first_step_past_each_period(videos: int, every: float, wanted: Iterable[int]) -> None:
    """Batches of ten; 0.3 // 0.1 is 2."""
    assert [step for step in range(11) if loop.evaluation_is_due(step, videos / 10, every)] == list(wanted)


def test_a_complete_run_whose_evaluation_is_stopped(
    dataset: Path, finished: tuple[Path, EvalResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    monkeypatch.setattr(loop, "load_evaluation", lambda workdir: None)
    monkeypatch.setattr(loop, "_evaluate", lambda run, state: None)
    result, _ = run(config_for(dataset), workdir)
    found = status.read_status(workdir)
    assert result is None and found.verdict == "stopped" and "its training is complete" in found.reason


def test_other_classes_are_refused_on_resume(dataset: Path, finished: tuple[Path, EvalResult], tmp_path: Path) -> None:
    """With as many classes, only their names tell that the logits would change their meaning."""
    cfg = config_for(dataset)
    cfg.data.lists = str(shutil.copytree(dataset / "lists", tmp_path / "lists"))
    classes = tmp_path / "lists" / "classInd.txt"
    names = [line.split()[1] for line in classes.read_text().splitlines()]
    names[0], names[1] = names[1], names[0]
    classes.write_text("".join(f"{number} {name}\n" for number, name in enumerate(names, start=1)))
    for file in (tmp_path / "lists").glob("trainlist*"):  # labels stand there too
        lines = [line.split()[0] for line in file.read_text().splitlines()]
        file.write_text("".join(f"{line} {names.index(line.split('/')[0]) + 1}\n" for line in lines))
    before, hook = (finished[0] / "config.json").read_bytes(), sys.unraisablehook
    with pytest.raises(
        UserError, match=f"other classes, or in another order: class 0 is {names[1]} there and {names[0]} here"
    ):
        run(cfg, finished[0])
    assert (finished[0] / "config.json").read_bytes() == before
    assert sys.unraisablehook is hook, "the checkpoints are closed"
    found = status.read_status(finished[0])
    assert (found.verdict, found.step) == ("failed", 6) and "other classes, or in another order" in found.reason


@pytest.mark.parametrize(("field", "value", "was"), [("split", 2, "1"), ("fold", 1, "0"), ("hold_out", 0.5, "0.0")])
def test_other_held_out_videos_are_refused_on_resume(
    dataset: Path, finished: tuple[Path, EvalResult], tmp_path: Path, field: str, value: float, was: str
) -> None:
    lists = shutil.copytree(dataset / "lists", tmp_path / "lists")
    for side in ("train", "test"):
        shutil.copy(lists / f"{side}list01.txt", lists / f"{side}list02.txt")
    cfg = config_for(dataset)
    cfg.data.lists = str(lists)
    if field == "fold":  # which needs three groups
        text = (lists / "trainlist01.txt").read_text()
        more = dict.fromkeys(re.sub(r"_g\d+_", "_g99_", text).splitlines())
        (lists / "trainlist01.txt").write_text(text + "\n".join(more) + "\n")
    setattr(cfg.data, field, value)
    before = (finished[0] / "config.json").read_bytes()
    with pytest.raises(UserError, match=rf"^config\.data\.{field}={value}: .* was trained with {was}, .* --workdir$"):
        run(cfg, finished[0])
    assert (finished[0] / "config.json").read_bytes() == before


@pytest.mark.usefixtures("unreported")
@pytest.mark.slow
def test_a_long_run_on_a_cpu_is_warned_of(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "LONG_SECONDS", 0.0)
    cfg = config_for(dataset)
    cfg.parallel.compute_dtype, cfg.train.eval_every = "auto", 100.0
    _, lines = run(cfg, tmp_path)
    assert capsys.readouterr().err.count("on this CPU the run takes about ") == 1
    assert any(line.startswith("float32, because bfloat16 is slower on a CPU") for line in lines)
    assert load_checkpoint(tmp_path).config.parallel.compute_dtype == "auto"


def test_evaluating_a_checkpoint_gives_the_same_numbers(dataset: Path, finished: tuple[Path, EvalResult]) -> None:
    lines: list[str] = []
    result = evaluate_checkpoint(config_for(dataset), finished[0], log=lines.append)
    last = load_checkpoint(finished[0], "latest")
    assert result.metrics["val/top1_video"] == last.metrics["val/top1_video"]
    assert any(str(last.path) in line for line in lines) and result.protocol.chosen == ""


def test_the_best_checkpoint_is_named(dataset: Path, finished: tuple[Path, EvalResult]) -> None:
    cfg = config_for(dataset)
    cfg.eval.checkpoint = "best"
    lines: list[str] = []
    result = evaluate_checkpoint(cfg, finished[0], log=lines.append)
    best = load_checkpoint(finished[0], "best")
    assert result.metrics["val/top1_video"] == best.metrics["val/top1_video"]
    assert "the checkpoint is the best on the test videos" in "\n".join(lines)
    page = finished[0] / "evaluations" / f"{result.protocol.folder}" / "report.html"
    assert page.parent.name.endswith("-best") and "the checkpoint is the best on the test videos" in page.read_text()


@pytest.mark.slow
def test_a_run_on_a_fold_is_evaluated_on_its_groups(tmp_path: Path) -> None:
    """It reads no test video: their frames are gone."""
    write_synthetic(tmp_path / "set", num_groups=4, clips_per_group=1, height=32, width=32, test_groups=1)
    tests = read_list(tmp_path / "set" / "lists", "test").entries
    for entry in tests:
        shutil.rmtree(tmp_path / "set" / "frames" / entry.class_name / entry.name)
    cfg = config_for(tmp_path / "set")
    cfg.data.fold, cfg.train.epochs, cfg.eval.num_clips = 2, 1.0, 1
    result, lines = run(cfg, tmp_path / "run")
    assert result is not None and result.protocol.fold == 2 and len(result.names) == 6 and not result.missing
    trained = {group_of(name) for name in open_index(cfg.data, "train").names.tolist()}
    held = {group_of(name) for name in result.names.tolist()}
    assert len(trained) == 3 and len(held) == 3  # each class holds out another of its three groups
    assert not set(open_index(cfg.data, "train").names.tolist()) & set(result.names.tolist())
    assert any(line.startswith("fold 2, held out: 6 videos of 6 classes") for line in lines)
    said = "held-out groups of the training list (fold 2), 6 videos"
    assert said in "\n".join(lines) and said in (tmp_path / "run" / "report.html").read_text()
    cfg.eval.checkpoint, lines = "best", []
    assert evaluate_checkpoint(cfg, tmp_path / "run", lines.append).protocol.chosen == "best on the held-out groups"
    assert "the checkpoint is the best on the held-out groups" in "\n".join(lines)
    cfg.data.fold = 1
    with pytest.raises(
        UserError, match=r"fold=1 of split 1: .* was trained with fold 2 of split 1, so on videos of this"
    ):
        evaluate_checkpoint(cfg, tmp_path / "run", lines.append)


def other_split(dataset: Path, folder: Path) -> Path:
    """Lists with a split 2 that tests a group of videos that split 1 trains on."""
    shutil.copytree(dataset / "lists", folder)
    trained = (folder / "trainlist01.txt").read_text().splitlines()
    for side, group in (("train", "_g03_"), ("test", "_g02_")):
        lines = [line if side == "train" else line.split(" ")[0] for line in trained if group in line]
        assert len(lines) == 12
        (folder / f"{side}list02.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_videos_that_were_trained_on_are_told(dataset: Path, finished: tuple[Path, EvalResult], tmp_path: Path) -> None:
    cfg, lines = config_for(dataset), []
    cfg.data.lists, cfg.data.split = str(other_split(dataset, tmp_path / "lists")), 2
    evaluate_checkpoint(cfg, finished[0], log=lines.append)
    assert "by their names, it was trained on 12 of these 12 videos: this says little about others" in lines
    assert "split 2, 12 videos (12 of them trained on), " in "\n".join(lines)
    page = next((finished[0] / "evaluations").glob("split2*/report.html")).read_text()
    assert "12 videos (12 of them trained on), " in page
    older = dataclasses.replace(load_checkpoint(finished[0]), videos="")  # of a version that did not keep them
    score_checkpoint(older, cfg, "test", lines.append)
    assert "trained on split 1, which may have test videos of split 2 among its training videos" in lines


@pytest.mark.usefixtures("unreported")
def test_videos_that_the_first_weights_were_trained_on_are_told(
    dataset: Path, finished: tuple[Path, EvalResult], tmp_path: Path
) -> None:
    """Also two trainings later, and from a checkpoint that `convert` wrote."""
    cfg = config_for(dataset)
    cfg.data.lists, cfg.data.split = str(other_split(dataset, tmp_path / "lists")), 2
    cfg.train.epochs = 0.5
    assert main(["convert", "--from", str(finished[0]), "--to", str(tmp_path / "converted")]) == 0
    cfg.init_from, said = str(tmp_path / "converted"), "init: trained on the training list of split 1, which has 12 of"
    assert main(["export", "--workdir", str(tmp_path / "converted"), "--to", str(tmp_path / "net.safetensors")]) == 0
    kept = load_checkpoint(finished[0]).videos
    assert len(kept) == 24 * 8 and load_model(tmp_path / "net.safetensors").videos == kept
    model = load_model(tmp_path / "converted")
    assert (model.videos, model.config.data.split) == (kept, 1)
    for name in ("first", "second"):
        result, lines = run(cfg, tmp_path / name)
        assert result is not None and result.protocol.trained_on == 12
        assert any(line.startswith(said) for line in lines)
        cfg.init_from, said = (
            str(tmp_path / name),
            "init: started from weights that were trained on 12 of the 12 videos",
        )
    lines = []
    second = load_checkpoint(tmp_path / "second")
    assert score_checkpoint(second, cfg, "test", lines.append)[0].protocol.trained_on == 12


@pytest.mark.usefixtures("unreported")
def test_a_complete_run_is_not_given_as_that_of_other_videos(
    dataset: Path, finished: tuple[Path, EvalResult], tmp_path: Path
) -> None:
    """Other lists under the same number of the split: of the test videos, of the training videos, or of both."""
    cfg = config_for(dataset)
    lists = other_split(dataset, tmp_path / "lists")
    cfg.data.lists = str(lists)
    for side, message in (
        ("test", r"was trained on 12 of the 12 videos that are evaluated now, e\.g\. v_\w+_g02_c0\d: the lists are "),
        ("train", r"is complete, and was trained on other videos than are there now \(0 new, 12 gone\)"),
    ):
        for name in ("train", "test"):
            chosen = "02" if side == "test" or name == side else "01"
            shutil.copy(lists / f"{name}list{chosen}.txt", tmp_path / f"{name}list01.txt")
        (tmp_path / side).mkdir()
        for name in ("classInd.txt", "trainlist01.txt", "testlist01.txt"):
            shutil.copy((tmp_path if "list01" in name else lists) / name, tmp_path / side / name)
        cfg.data.lists = str(tmp_path / side)
        with pytest.raises(UserError, match=message):
            run(cfg, finished[0])
    half = (lists / "testlist01.txt").read_text().splitlines()[::2]
    (lists / "testlist01.txt").write_text("\n".join(half) + "\n")
    cfg.data.lists = str(lists)
    message = r"is complete, and was evaluated on 12 videos; 6 are there now, or others: add --mode=eval"
    with pytest.raises(UserError, match=message):
        run(cfg, finished[0])


def test_classes_are_compared(dataset: Path, finished: tuple[Path, EvalResult]) -> None:
    lines: list[str] = []
    cfg = config_for(dataset)
    cfg.data.classes = ("Left", "Right")
    with pytest.raises(UserError, match=r"was trained on 6 classes .* the lists have 2 .*config\.data\.classes"):
        evaluate_checkpoint(cfg, finished[0], log=lines.append)


@pytest.mark.slow
def test_an_evaluation_leaves_the_files_of_the_training_alone(dataset: Path, finished: tuple[Path, EvalResult]) -> None:
    workdir, lines = finished[0], []
    names = ("evaluation.json", "evaluation.npz", "report.html")
    before = [(workdir / name).read_bytes() for name in names]
    cfg = config_for(dataset)
    cfg.eval.views, cfg.eval.nearest = "dense", True
    cfg.seed, cfg.optimizer.learning_rate, cfg.parallel.fsdp = 71234, 0.71234, 2
    evaluate_checkpoint(cfg, workdir, log=lines.append)
    assert [(workdir / name).read_bytes() for name in names] == before
    folder = workdir / "evaluations" / "split1-dense-1crop"
    assert lines[-1] == f"report: {folder / 'report.html'}" and all((folder / name).is_file() for name in names)
    page = (folder / "report.html").read_text()
    assert "<h2>Training</h2>" in page and "Grad-CAM of" in page and "nearest training video: v_" in page
    assert "71234" not in page, "the page has the settings that the network was trained with"


@pytest.mark.slow
def test_an_evaluation_on_other_data_has_a_folder_of_its_own_and_is_not_in_the_card(
    dataset: Path, finished: tuple[Path, EvalResult], tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    other = Path(shutil.copytree(dataset, tmp_path / "foggy"))
    lines: list[str] = []
    for root in (dataset, other):
        evaluate_checkpoint(config_for(root), workdir, log=lines.append)
    folders = {path.name for path in (workdir / "evaluations").iterdir()}
    assert {"split1-uniform2-1crop", "split1-uniform2-1crop-foggy-lists"} <= folders
    assert "other data than in training (foggy lists), split 1, 12 videos" in "\n".join(lines)
    kept = evaluations(load_checkpoint(workdir, "latest"))
    assert kept and not any(result.protocol.other_data for result in kept)


def test_a_run_may_end_earlier_than_planned(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after four of six steps, and ended there: it is evaluated at that step."""
    monkeypatch.setattr(loop.report, "write_report", lambda workdir, *args, **options: workdir)
    add = loop.Meter.add

    def add_and_stop(meter, step: int, *rest) -> None:
        add(meter, step, *rest)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Meter, "add", add_and_stop)
        run(config_for(dataset), tmp_path)
    cfg = config_for(dataset)
    cfg.train.epochs = 1.2
    result, lines = run(cfg, tmp_path)
    assert result is not None and f"resumed from step 4 of 4 ({tmp_path})" in lines
    assert [row["step"] for row in read_metrics(tmp_path) if "val/top1_video" in row] == [3, 4]


@pytest.mark.parametrize(("name", "what"), [("train/loss", "loss"), ("train/grad_norm", "norm of the gradient")])
def test_what_is_not_finite_is_named(name: str, what: str) -> None:
    metrics = {"train/loss": 1.0, "train/grad_norm": 1.0, "train/learning_rate": 0.1} | {name: float("inf")}
    made = meter.Meter(None, TrainConfig(), 1.0, None, print, lambda: 7)  # type: ignore[arg-type]
    made._pending = [(12, metrics)]  # type: ignore[list-item]
    message = rf"the {what} is inf at step 12\. Lower .*: it goes on from step 7\."
    with pytest.raises(TrainingDiverged, match=message):
        made.flush()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(dataset: Path, tmp_path: Path) -> None:
    cfg = config_for(dataset)
    cfg.optimizer.name, cfg.optimizer.learning_rate, cfg.optimizer.clip_norm = "sgd", 1e30, 0.0
    cfg.checkpoint.every_steps = 1
    message = r"the (loss|norm of the gradient) is (nan|inf) at step 2\. Lower config\.optimizer\.learning_rate or .*"
    with pytest.raises(TrainingDiverged, match=rf"{message}: it goes on from step 1\. If it fails .*/1 in the"):
        run(cfg, tmp_path)
    assert load_checkpoint(tmp_path, "latest").step == 1 and sorted(losses(tmp_path)) == [1]
    found = status.read_status(tmp_path)
    assert (found.verdict, found.step) == ("failed", 2) and found.reason.startswith("the ")
    cfg.checkpoint.every_steps = 100
    with pytest.raises(TrainingDiverged, match=rf"{message}: there is no checkpoint yet, so it starts from the"):
        run(cfg, tmp_path / "other")


@pytest.mark.slow
def test_broken_frames_are_named_once_and_the_run_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_synthetic(root, num_groups=3, clips_per_group=2, height=32, width=32, test_groups=1)
    name = read_list(root / "lists", "train", 1).entries[0].name
    (folder,) = root.glob(f"frames/*/{name}")
    for frame in folder.iterdir():
        frame.write_bytes(b"")
    cfg = config_for(root)
    cfg.train.epochs = 1.0
    result, lines = run(cfg, tmp_path / "run")
    assert result is not None and len(losses(tmp_path / "run")) == 3
    assert status.read_status(tmp_path / "run").processes[0].broken_videos == 1
    assert len([line for line in lines if name in line]) >= 1
    assert name in (tmp_path / "run" / "report.html").read_text()
    cfg.data.on_broken = "error"
    with pytest.raises(UserError, match=name):
        run(cfg, tmp_path / "strict")


def test_an_unknown_network_is_refused_before_data_is_touched(tmp_path: Path) -> None:
    cfg = config_for(tmp_path / "nowhere")
    cfg.model.family = "r2plus4d"
    with pytest.raises(UserError, match="config.model.family='r2plus4d': unknown; did you mean r2plus"):
        run(cfg, tmp_path / "run")


def test_missing_data_says_what_to_do(tmp_path: Path) -> None:
    cfg = config_for(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"Download UCF101 from .*data/ucf101/frames.*configs/quickstart\.py"):
        run(cfg, tmp_path / "run")
