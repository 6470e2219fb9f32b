"""A study's grid, its runs (skipped when done, recorded when they fail, tried again), and what it writes."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import load_checkpoint
from r23d_jax.commands.study import show_grid
from r23d_jax.config import Config, UserError, to_json
from r23d_jax.data.make.synthetic import write_synthetic
from r23d_jax.evaluation import report
from r23d_jax.runtime import disk
from r23d_jax.runtime.progress import format_seconds
from r23d_jax.study import run as runner
from r23d_jax.study.costs import CORE_RATE, GPU_RATE, cost_of, parameters_of
from r23d_jax.study.grid import File, Study, cells, shard, with_settings
from r23d_jax.study.groups import gather
from r23d_jax.study.results import write_results
from tests.training.tiny import tiny_config

NETWORKS = {"R(2+1)D": {"model.family": "r2plus1d"}, "f-R2D": {"model.family": "f_r2d"}}
SEEDS = {str(seed): {"seed": seed} for seed in range(3)}
SPLITS = {"1": {"data.split": 1}, "2": {"data.split": 2}}


def study(**axes: Any) -> Study:
    base = Config()
    base.model.depth, base.model.widths = 10, (4, 6, 8, 8)
    base.model.head.kind = "avgpool"
    return Study("A title", base, axes or {"network": NETWORKS, "seed": SEEDS, "split": SPLITS})


def test_the_grid_is_complete_once_before_anything_is_repeated() -> None:
    grid = cells(study())
    assert len(grid) == 12
    assert [cell.name for cell in grid[:3]] == ["R2+1D_seed0_split1", "f-R2D_seed0_split1", "R2+1D_seed0_split2"]
    assert grid[1].config.model.family == "f_r2d" and grid[-1].config.seed == 2 and grid[-1].config.data.split == 2
    assert grid[0].group == ("R(2+1)D",)
    assert study().base == Study("", study().base, {}).base  # the base itself is not changed
    parts = [shard(grid, f"{k}/5") for k in range(1, 6)]
    assert sorted(cell.name for part in parts for cell in part) == sorted(cell.name for cell in grid)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {"a": {"x": {"model.famly": "r3d"}}},
            "axis a, value x: config.model.famly: config.model has no field 'famly'",
        ),
        ({"a": {"x": {"train.epochs": -1.0}}}, r"(?s)cell x: wrong configuration.*config.train.epochs=-1.0"),
        (
            {"a": {"x": {"optimizer.name": "adam"}}},
            r"cell x: config.optimizer.name='adam': unknown; did you mean adamw",
        ),
        ({"a": {"x": {}, "(x)": {}}}, "two cells have one name"),
        ({"a": {}}, "has no cells"),
    ],
)
def test_wrong_grids(axes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cells(study(**axes))


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b"])
def test_wrong_shards(text: str) -> None:
    with pytest.raises(UserError, match=f"--shard {text}: must be i/n"):
        shard(cells(study()), text)


def test_an_empty_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "--config=configs/study.py", f"--workdir={tmp_path}", "--shard=900/1000", "--list"]
    assert main(words) == 2
    assert "--shard 900/1000: is empty, because the study has 24 trainings only" in capsys.readouterr().err


def test_settings_of_the_base() -> None:
    base = study()
    changed = with_settings(base, ["data.root=some/where", "train.epochs=3.0", "data.classes=('A', 'B')"])
    assert changed.base.data.root == "some/where" and changed.base.data.classes == ("A", "B")
    assert changed.base.train.epochs == 3.0 and base.base.train.epochs != 3.0
    with pytest.raises(UserError, match="--set data.root: must be FIELD=VALUE"):
        with_settings(base, ["data.root"])
    with pytest.raises(UserError, match="--set: config.data.rooot: config.data has no field 'rooot'"):
        with_settings(base, ["data.rooot=x"])
    with pytest.raises(UserError, match=r"(?s)wrong configuration.*config.train.epochs='many'"):
        cells(with_settings(base, ["train.epochs=many"]))


def test_left_out_combinations() -> None:
    grid = cells(
        Study("", study().base, {"network": NETWORKS, "seed": SEEDS}, skip=({"network": "f-R2D", "seed": "2"},))
    )
    assert len(grid) == 5 and not any(cell.name == "f-R2D_seed2" for cell in grid)


def test_cost_is_known_without_data() -> None:
    (cell, _) = cells(study(network=NETWORKS))
    cost = cost_of(cell)
    assert cost.parameters > 0 and cost.gmacs > 0 and cost.clips is None and cost.pmacs is None


def test_cost_is_known_from_lists(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a/v1.avi,a\na/v2.avi,a\n")
    (tmp_path / "val.csv").write_text("a/v3.avi,a\n")
    base = study(network=NETWORKS).base
    base.data.lists, base.data.root, base.train.epochs = str(tmp_path), str(tmp_path / "none"), 5.0
    few = cost_of(cells(Study("", base, {"network": NETWORKS}))[0])
    assert few.clips == 10
    ucf101 = cost_of(cells(study(network=NETWORKS))[0])
    width = base.model.widths[-1]
    assert ucf101.parameters - few.parameters == 100 * (width + 1), "one class instead of 101"
    base.data.repeats = 2
    assert cost_of(cells(Study("", base, {"network": NETWORKS}))[0]).clips == 20
    (tmp_path / "train.csv").write_text("".join(f"a/w{k}.avi,a\n" for k in range(6)))
    base.data.fold, base.data.repeats = 1, 1
    assert cost_of(cells(Study("", base, {"network": NETWORKS}))[0]).clips == 20  # four of the six videos
    base.data.lists, base.data.root = "", str(tmp_path / "frames")
    assert cost_of(cells(Study("", base, {"network": NETWORKS}))[0]).clips is None
    assert not (tmp_path / "lists").exists()


def test_the_list_shows_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rough estimate at first; the measured rate as soon as one training is done."""
    (tmp_path / "train.csv").write_text("".join(f"a/v{i}.avi,a\n" for i in range(1000)))
    (tmp_path / "val.csv").write_text("a/w.avi,a\n")
    grid = cells(study(network=NETWORKS))
    for cell in grid:
        cell.config.data.lists, cell.config.data.root = str(tmp_path), str(tmp_path / "none")
    pmacs = [cost_of(cell).pmacs or 0.0 for cell in grid]
    show_grid(grid, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    hours = 1e15 * pmacs[0] / (CORE_RATE * (os.cpu_count() or 1)) / 3600
    assert lines[1].split()[-1] == f"{hours:,.2f}"
    assert (
        "a rough estimate: " in lines[-1]
        and f"{sum(pmacs) * 1e15 / GPU_RATE / 3600:,.1f} hours on one H100" in lines[-1]
    )
    outcome = runner.Outcome("done", 7200.0, {}, {}, parameters=1, gmacs=1.0)
    (tmp_path / grid[0].name).mkdir()
    (tmp_path / grid[0].name / runner.OUTCOME).write_text(json.dumps(dataclasses.asdict(outcome)))
    show_grid(grid, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[-2:] == ["2.00", "2:00:00"]
    assert lines[-1] == f"about {format_seconds(7200 * sum(pmacs[1:]) / pmacs[0])} at the rate of the finished ones"


class FakeProcess:
    """Stands for the process of a cell: writes its evaluation, or says why it cannot."""

    calls: list[str] = []
    accuracy: Callable[[str], float | None]

    def __init__(self, command: list[str], stdout: Any, stderr: Any, pass_fds: list[int]):
        self.folder = Path(command[-1])
        FakeProcess.calls.append(self.folder.name)
        self.stdout = stdout

    def wait(self) -> int:
        accuracy = FakeProcess.accuracy(self.folder.name)
        if accuracy is None:
            self.stdout.write("line\nerror: no data\n")
            return 2
        names = ["a", "b"]
        metrics = {"val/top1_video": accuracy, "val/mean_class": accuracy, "val/top1_clip": accuracy / 2}
        evaluation = {"metrics": metrics, "class_names": names, "per_class": [accuracy, None]}
        evaluation |= {"videos": 4, "not_evaluated": ["v"], "missing": []}
        (self.folder / "evaluation.json").write_text(json.dumps(evaluation | {"environment": {"devices": "1 x cpu"}}))
        return 0


BOTH = {"fusion.first": "rgb", "fusion.second": "diff"}
STREAMS = {
    "rgb": {},
    "flow": {"data.root": "frames.flow"},
    "both": {"fusion.first": "rgb", "fusion.second": "flow"},
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeProcess]:
    FakeProcess.calls = []
    monkeypatch.setattr(runner.subprocess, "Popen", FakeProcess)
    return FakeProcess


def test_a_training_without_a_readable_test_video_does_not_end_the_study(
    fake: type[FakeProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = cells(study(network=NETWORKS))
    fake.accuracy = staticmethod(lambda name: 0.5)
    collect = runner.Outcome

    def without(*args: Any, **fields: Any) -> runner.Outcome:
        outcome = collect(*args, **fields)
        return dataclasses.replace(outcome, metrics=dict.fromkeys(outcome.metrics))

    monkeypatch.setattr(runner, "Outcome", without)
    said: list[str] = []
    assert runner.run_cells(grid, tmp_path, said.append) == (len(grid), 0)
    assert [line.split(" in ")[0].strip() for line in said if " in " in line] == ["no test video could be read,"] * len(
        grid
    )


def test_a_failing_cell_is_recorded_tried_again_and_the_rest_go_on(fake: type[FakeProcess], tmp_path: Path) -> None:
    grid = cells(study(network=NETWORKS, seed=SEEDS))
    fake.accuracy = staticmethod(lambda name: None if name == "f-R2D_seed0" else 0.5)
    said: list[str] = []
    assert runner.run_cells(grid, tmp_path, said.append) == (5, 1)
    assert any("exit status 2" in line and "error: no data" in line for line in said)
    outcome = runner.read_outcome(tmp_path / "f-R2D_seed0")
    assert outcome is not None and outcome.status == "failed" and "error: no data" in outcome.reason
    fake.calls.clear()
    fake.accuracy = staticmethod(lambda name: 0.25)
    assert runner.run_cells(grid, tmp_path, said.append) == (6, 0)
    assert fake.calls == ["f-R2D_seed0"]  # what is done is not run again
    (tmp_path / "R2+1D_seed0" / runner.OUTCOME).write_text("{damaged")
    fake.calls.clear()
    runner.run_cells(grid, tmp_path, said.append)
    assert fake.calls == ["R2+1D_seed0"]


def test_a_finished_cell_with_other_settings_is_said(fake: type[FakeProcess], tmp_path: Path) -> None:
    fake.accuracy = staticmethod(lambda name: 0.5)
    before, now = (study(network=NETWORKS, seed={"0": {"seed": 0}}) for _ in range(2))
    runner.run_cells(cells(before), tmp_path, lambda line: None)
    said: list[str] = []
    now.base.data.root, now.base.data.remote_cache = "moved/elsewhere", 5.0
    assert runner.run_cells(cells(now), tmp_path, said.append) == (2, 0) and said == []  # a place is no setting
    now.base.train.epochs = 3.0
    assert runner.run_cells(cells(now), tmp_path, said.append) == (2, 0)
    assert said[0] == (
        "R2+1D_seed0: done with other settings (config.train.epochs=300.0, is 3.0 now); "
        f"delete {tmp_path / 'R2+1D_seed0'} to run it again"
    )
    said.clear()
    now.base.train.epochs, now.base.init_from, now.base.fusion.weight = before.base.train.epochs, "runs/a", 0.9
    now.base.eval.checkpoint = "best"
    runner.run_cells(cells(now), tmp_path, said.append)
    for name in ("eval.checkpoint", "fusion.weight", "init_from"):
        assert f"config.{name}=" in said[0]
    said.clear()
    runner.run_cells(cells(now), tmp_path, said.append)
    assert len(said) == 2
    (tmp_path / "R2+1D_seed0" / runner.CELL).write_bytes(b"\xff damaged")
    runner.run_cells(cells(now), tmp_path, said.append)
    assert len(said) == 3  # only of the other one this time


@pytest.mark.parametrize("how", ["stopped", "failed", "killed"])
def test_a_cell_is_not_continued_with_other_settings(fake: type[FakeProcess], tmp_path: Path, how: str) -> None:
    """Its result would be neither that of the old settings nor that of the new ones."""
    described = study(seed={"0": {"seed": 0}})
    (cell,) = cells(described)
    folder = tmp_path / cell.name
    folder.mkdir()
    (folder / runner.CELL).write_text(to_json(cell.config))
    if how != "killed":
        (folder / runner.OUTCOME).write_text(json.dumps(dataclasses.asdict(runner.Outcome(how, 1.0, {}, {}, 1, 1.0))))
    fake.accuracy = staticmethod(lambda name: 0.5)
    (folder / "checkpoints" / "20").mkdir(parents=True)
    (folder / "checkpoints" / "20" / "state").touch()
    described.base.optimizer.learning_rate, said = 0.5, []
    assert runner.run_cells(cells(described), tmp_path, said.append) == (0, 0) and not fake.calls
    rate = cell.config.optimizer.learning_rate
    assert said == [
        f"seed0: begun with other settings (config.optimizer.learning_rate={rate!r}, is 0.5 now); delete {folder} to "
        "run it again"
    ]
    assert (folder / runner.CELL).read_text() == to_json(cell.config)
    assert runner.run_cells([cell], tmp_path, said.append) == (1, 0)  # with its own settings, it goes on
    shutil.rmtree(folder)
    assert runner.run_cells(cells(described), tmp_path, said.append) == (1, 0) and len(fake.calls) == 2


def test_a_cell_without_checkpoints_starts_with_the_settings_of_now(fake: type[FakeProcess], tmp_path: Path) -> None:
    described = study(seed={"0": {"seed": 0}})
    fake.accuracy = staticmethod(lambda name: None)
    assert runner.run_cells(cells(described), tmp_path, lambda line: None) == (0, 1)
    described.base.optimizer.learning_rate = 0.5
    fake.accuracy = staticmethod(lambda name: 0.5)
    assert runner.run_cells(cells(described), tmp_path, lambda line: None) == (1, 0)


def test_parameters_are_those_of_the_network_that_was_trained(fake: type[FakeProcess], tmp_path: Path) -> None:
    """Also where the study's network is another by now, and in a sum with a stream that was trained before."""
    fake.accuracy = staticmethod(lambda name: 0.5)
    described = study(input={"rgb": {}, "diff": {"data.input": "rgb_diff"}} | {"both": BOTH}, seed={"0": {"seed": 0}})
    grid = cells(described)
    runner.run_cells(grid[:2], tmp_path, lambda line: None)
    trained = runner.read_outcome(tmp_path / "rgb_seed0")
    assert trained is not None and trained.parameters == parameters_of(grid[0].config, 2)
    old = json.loads((tmp_path / "rgb_seed0" / runner.OUTCOME).read_text()) | {"parameters": 123}
    (tmp_path / "rgb_seed0" / runner.OUTCOME).write_text(json.dumps(old))  # of an earlier version
    described.base.model.widths = (8, 8, 8, 8)
    runner.run_cells(cells(described), tmp_path, lambda line: None)
    assert runner.read_outcome(tmp_path / "rgb_seed0") == trained
    both = runner.read_outcome(tmp_path / "both_seed0")
    assert both is not None and (both.parameters, both.gmacs) == (2 * trained.parameters, 2 * trained.gmacs)


def test_the_time_of_a_stopped_cell_counts(
    fake: type[FakeProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = cells(study(seed={"0": {"seed": 0}}))
    now, stops = [0.0], [True]

    def accuracy(name: str) -> float:
        now[0] += 100.0
        if stops.pop():
            stops.append(False)
            stops.append(False)
            raise KeyboardInterrupt
        return 0.5

    fake.accuracy = staticmethod(accuracy)
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    with pytest.raises(KeyboardInterrupt):
        runner.run_cells([cell], tmp_path, lambda line: None)
    stopped = runner.read_outcome(tmp_path / cell.name)
    assert stopped is not None and (stopped.status, stopped.seconds) == ("stopped", 200.0)
    page = write_results(study(seed={"0": {"seed": 0}}), [cell], tmp_path).read_text()
    assert "0 of 1 trainings are done, 1 have not run." in page
    assert runner.run_cells([cell], tmp_path, lambda line: None) == (1, 0)
    done = runner.read_outcome(tmp_path / cell.name)
    assert done is not None and (done.status, done.seconds) == ("done", 300.0)


def test_two_streams_are_added_when_both_are_done(
    fake: type[FakeProcess], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "frames").mkdir()
    described = dataclasses.replace(
        study(input=STREAMS, seed={"0": {"seed": 0}}), files={"frames.flow": File("flow of it", "no")}
    )
    grid = cells(described)
    assert [stream.name for stream in grid[2].streams] == ["rgb_seed0", "flow_seed0"]
    assert grid[1].needs == grid[2].needs == {"frames.flow": "flow of it: --set frames.flow=PATH"} and not grid[0].needs
    fake.accuracy = staticmethod(lambda name: 0.5)
    said: list[str] = []
    assert runner.run_cells(grid, tmp_path, said.append) == (1, 0) and fake.calls == ["rgb_seed0"]
    assert said.count("    left out: needs flow of it: --set frames.flow=PATH") == 2
    page = write_results(described, grid, tmp_path).read_text()
    assert "| flow | needs frames.flow |" in page and "- needs flow of it: --set frames.flow=PATH" in page
    show_grid(grid, tmp_path)
    assert "missing: flow of it: --set frames.flow=PATH" in capsys.readouterr().out

    grid = cells(with_settings(described, [f"frames.flow={tmp_path / 'frames'}"]))
    assert grid[1].config.data.root == str(tmp_path / "frames") and not grid[2].needs
    fake.accuracy = staticmethod(lambda name: None if name == "flow_seed0" else 0.5)
    said.clear()
    assert runner.run_cells(grid, tmp_path, said.append) == (1, 1)
    assert said[-1] == "    left out: needs flow_seed0"
    fake.accuracy = staticmethod(lambda name: 0.75)
    assert runner.run_cells(grid, tmp_path, said.append) == (3, 0)
    written = json.loads((tmp_path / "both_seed0" / runner.CELL).read_text())["fusion"]
    assert (written["first"], written["second"]) == (str(tmp_path / "rgb_seed0"), str(tmp_path / "flow_seed0"))
    costs = [cost_of(cell) for cell in grid]
    assert costs[2].parameters == costs[0].parameters + costs[1].parameters and costs[2].pmacs == 0


def test_streams_and_files_must_exist() -> None:
    with pytest.raises(UserError, match="cell both: fusion.first='rgb': must be the label of an earlier value"):
        cells(study(input={"both": STREAMS["both"], "rgb": {}}))
    described = dataclasses.replace(study(), files={"weights.imagenet": File("GoogLeNet")})
    with pytest.raises(UserError, match="--set='weights.imagnet': unknown; did you mean weights.imagenet"):
        with_settings(described, ["weights.imagnet=x"])
    with pytest.raises(UserError, match="--set weights.imagenet=x: there is no such file or folder"):
        with_settings(described, ["weights.imagenet=x"])


def test_results_are_means_over_repetitions_with_the_spread_of_seeds(fake: type[FakeProcess], tmp_path: Path) -> None:
    grid = cells(study())
    scores = {"seed0_split1": 0.5, "seed0_split2": 0.7, "seed1_split1": 0.6, "seed1_split2": 0.8}

    def accuracy(name: str) -> float | None:
        if name.startswith("f-R2D"):
            return None if "split2" in name else 0.2
        return scores.get(name.removeprefix("R2+1D_"), 0.7)

    fake.accuracy = staticmethod(accuracy)
    runner.run_cells(grid, tmp_path, lambda line: None)
    ours, flat = gather(grid, tmp_path)
    assert ours.values("val/top1_video") == pytest.approx([60, 70, 70])  # per seed, over both splits
    assert flat.failed == 3 and len(flat.outcomes) == 3
    page = write_results(study(), grid, tmp_path).read_text()
    assert "9 of 12 trainings are done, 3 failed." in page and "mean over what is done of 3 seeds and 2 splits" in page
    assert "| R(2+1)D | 66.67 ± 5.77 |" in page
    assert "| network | split 1 | split 2 | mean |" in page and "| R(2+1)D | 60.00 | 73.33 | 66.67 |" in page
    assert "| f-R2D | 20.00 |  |  |" in page and "Failed: f-R2D (3)" in page
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and rows[0]["network"] == "R(2+1)D" and float(rows[0]["val/top1_video"]) == 0.5
    assert {row["status"] for row in rows} == {"done", "failed"}
    for name in ("accuracy_gmacs.svg", "accuracy_parameters.svg", "per_class.svg"):
        assert f"({name})" in page
        ET.parse(tmp_path / name)


def test_nothing_has_run_yet(tmp_path: Path) -> None:
    page = write_results(study(), cells(study()), tmp_path).read_text()
    assert "0 of 12 trainings are done, 12 have not run." in page and "svg" not in page


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], fake: type[FakeProcess]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from r23d_jax.config import Config\nfrom r23d_jax.study.grid import Study\n"
        "def get_study(arg):\n    base = Config()\n    base.model.depth, base.model.head.kind = 10, 'avgpool'\n"
        "    axis = {'a': {'model.family': 'f_r2d'}, 'b': {'model.family': 'r2d'}}\n"
        "    return Study(arg or 'mine', base, {'network': axis})\n"
    )
    workdir = tmp_path / "out"
    args = ["study", f"--config={file}", f"--workdir={workdir}"]
    assert main([*args, "--list"]) == 0
    listed = capsys.readouterr().out
    assert (
        "2 trainings;" in listed
        and "2 of them have neither dataset nor lists on disk yet" in listed
        and not workdir.exists()
    )
    fake.accuracy = staticmethod(lambda name: 0.5 if name == "a" else None)
    assert main(args) == 3
    assert f"1 of 2 trainings are done, 1 failed: {workdir / 'results.md'}" in capsys.readouterr().out
    assert main([*args, "--only", "a"]) == 0
    with disk.hold(workdir / "b", runner.LOCK):
        assert main([*args, "--only", "b"]) == 3
    assert "0 of 1 trainings are done: " in capsys.readouterr().out
    assert main([*args, "--only", "zzz"]) == 2
    assert "no training's name contains it" in capsys.readouterr().err
    assert main(["study", "--config=configs/studdy.py", "--workdir=x"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["study", "--config=configs/r23d.py", "--workdir=x"]) == 2
    assert (
        "has no get_study(arg); it describes one training: use launch.py or the command train"
        in capsys.readouterr().err
    )
    assert main(["study"]) == 2


@pytest.mark.slow
def test_a_cell_runs_as_a_process_of_its_own(tmp_path: Path) -> None:
    """And says in its log what is wrong with it."""
    base = Config()
    base.data.root, base.data.lists = str(tmp_path / "no"), str(tmp_path / "no")
    grid = cells(Study("", base, {"seed": {"0": {"seed": 0}}}))
    assert isinstance(subprocess.Popen, type) and runner.run_cells(grid, tmp_path, lambda line: None) == (0, 1)
    log = (tmp_path / grid[0].name / runner.LOG).read_text()
    assert "error: " in log and "Traceback" not in log


@pytest.mark.slow
def test_a_cell_takes_its_best_checkpoint_if_its_config_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its evaluation says so, from which the tables have it."""
    monkeypatch.setattr(report, "write_report", lambda *args, **options: tmp_path)  # which nothing here reads
    write_synthetic(tmp_path / "set", num_groups=3, clips_per_group=1, height=32, width=32, test_groups=1)
    cfg = tiny_config()
    cfg.data.root, cfg.data.lists = str(tmp_path / "set/frames"), str(tmp_path / "set/lists")
    cfg.train.epochs, cfg.train.eval_every, cfg.eval.views, cfg.eval.num_clips = 2.0, 1.0, "uniform", 1
    cfg.eval.checkpoint = "best"
    folder = tmp_path / "cell"
    folder.mkdir()
    (folder / runner.CELL).write_text(to_json(cfg))
    assert runner.train_cell(folder) == 0
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["protocol"]["chosen"] == "best on the test videos"
    best = load_checkpoint(folder, "best")
    assert evaluation["metrics"]["val/top1_video"] == best.metrics["val/top1_video"]
