"""The table of the original README: its rows and owners, and a fine-tune from the files that it asks for."""

import dataclasses
import types
from pathlib import Path
from typing import Any

import pytest

from r23d_jax.__main__ import main
from r23d_jax.config import Config, HeadConfig, ModelConfig, UserError, preprocessing
from r23d_jax.study import run as runner
from r23d_jax.study.grid import Study, cells, load_study, with_settings
from r23d_jax.study.results import write_results
from r23d_jax.weights import files
from r23d_jax.weights.state_dicts import to_arrays
from tests.moving import write_moving
from tests.weights.random_networks import trained

FILE = str(Path(__file__).parents[2] / "configs" / "study.py")
SEED_ROWS = [
    "I3D RGB",
    "I3D RGB, ImageNet",
    "I3D flow, ImageNet",
    "I3D two-stream, ImageNet",
    "R(2+1)D RGB",
    "R(2+1)D flow",
    "R(2+1)D two-stream",
    "R(2+1)D RGB, Sports-1M",
    "R(2+1)D flow, Sports-1M",
    "R(2+1)D two-stream, Sports-1M",
    "R(2+3)D RGB",
]
KINETICS = [67.5, 72.1, 65.3, 75.7, 72.0, 67.5, 73.9, 74.3, 68.5, 75.4]


@pytest.mark.parametrize("variant", ["table", "table_ucf5"])
@pytest.mark.slow
def test_the_rows_of_the_original_readme(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = load_study(FILE, variant)
    assert list(study.axes["network"])[:11] == SEED_ROWS
    published = study.facts["published Kinetics-400"]
    assert [float(published[row].split()[0]) for row in SEED_ROWS[:10]] == KINETICS and published["R(2+3)D RGB"] == ""
    assert "misprinted as 75.7" in published["R(2+1)D RGB"]
    assert "claimed [o], no log" in study.facts["published UCF101"]["R(2+3)D RGB"]
    assert all(f"[{owner}]" in study.notes for owner in "ticfo")
    grid = cells(study)
    assert len(grid) == 18 * 9
    by_label = {cell.labels["network"]: cell for cell in grid[:18]}
    won = {label for label, cell in by_label.items() if cell.config.data.stride_jitter}
    assert won == {label for label, cell in by_label.items() if cell.config.model.stem == "motion"}
    assert won == {label for label in by_label if "motion" in label}
    assert [by_label[row].config.model.in_channels for row in SEED_ROWS[:3]] == [3, 3, 2]
    assert by_label["R(2+3)D RGB"].config.model.head.kind == "vit"
    streams = [cell.labels["network"] for cell in by_label["R(2+1)D two-stream, Sports-1M"].streams]
    assert streams == ["R(2+1)D RGB, Sports-1M", "R(2+1)D flow, Sports-1M"]
    streams = [cell.labels["network"] for cell in by_label["R(2+3)D two-stream, motion stem, motion"].streams]
    assert streams == ["R(2+3)D RGB, average pool, motion stem, motion", "R(2+3)D flow, average pool"]
    assert by_label["R(2+3)D flow, average pool"].config.model.in_channels == 2
    sums = [cell for cell in grid if cell.streams]
    assert len(sums) == 5 * 9 and all(cell.config.fusion.choice == "sum" for cell in sums)
    assert not by_label["R(2+1)D RGB"].needs and list(by_label["I3D RGB, ImageNet"].needs) == ["weights.imagenet"]
    page = write_results(study, grid, tmp_path).read_text()  # of a study that has not begun
    assert "| R(2+1)D RGB, Sports-1M | Sports-1M | 93.6 \\[t\\] | 74.3 \\[t\\] | needs weights.sports1m |" in page
    assert "- needs torchvision's googlenet, https" in page and "(svg" not in page


def test_folds_instead_of_splits() -> None:
    study = load_study(FILE, "heads_ucf5,folds")
    assert set(study.axes) == {"head", "seed", "fold"} and len(cells(study)) == 7 * 9
    assert {cell.config.data.fold for cell in cells(study)} == {1, 2, 3}
    assert len(cells(load_study(FILE, "heads_ucf5"))) == len(cells(load_study(FILE, "heads_diff_ucf5"))) == 7 * 9
    assert len(cells(load_study(FILE, "inputs_ucf5"))) == 3 * 9
    with pytest.raises(UserError, match="variant='heads_ucf': unknown; did you mean heads_ucf5"):
        load_study(FILE, "heads_ucf")
    with pytest.raises(UserError, match="after the comma, only folds is known"):
        load_study(FILE, "heads,fold")


class InThisProcess:
    """Stands for the process of a cell."""

    def __init__(self, command: list[str], **streams: Any):
        self.folder = Path(command[-1])

    def wait(self) -> int:
        return runner.train_cell(self.folder)


@pytest.mark.long
def test_streams_are_fine_tuned_from_files_and_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Sports-1M rows of the small table, with smaller networks and files of random values."""
    monkeypatch.setattr(runner, "subprocess", types.SimpleNamespace(Popen=InThisProcess, STDOUT=None))
    for number, (name, speed) in enumerate((("Left", -1), ("Right", 1))):
        for side in ("train", "test"):
            write_moving(tmp_path / "videos" / name / f"{side}.avi", 25, seconds=1.0, speed=speed, seed=number)
    for file, side in (("train", "train"), ("val", "test")):
        (tmp_path / f"{file}.csv").write_text(f"path,label\nLeft/{side}.avi,Left\nRight/{side}.avi,Right\n")
    common = ["prepare", "--videos", str(tmp_path / "videos"), "--short-side", "24", "--workers", "1"]
    assert main([*common, "--out", str(tmp_path / "rgb")]) == 0
    assert main([*common, "--flow", "--flow-bound", "5", "--out", str(tmp_path / "flow")]) == 0
    study, widths = load_study(FILE, "table_ucf5"), (4, 6, 8, 8)
    rows = {label: study.axes["network"][label] for label in SEED_ROWS[7:10]}
    rows = {label: dict(row) | {"model.depth": 10, "model.widths": widths} for label, row in rows.items()}
    for name, channels in (("sports1m", 3), ("sports1m_flow", 2)):
        cfg = Config(model=ModelConfig("r2plus1d", 10, widths, in_channels=channels, head=HeadConfig("avgpool")))
        model = trained("r2plus1d_10", widths=widths, num_classes=487, in_channels=channels)
        names = [f"class_{k}" for k in range(487)]
        meta = {"config": dataclasses.asdict(cfg.model), "class_names": names}
        meta["preprocessing"] = dataclasses.asdict(preprocessing(cfg.data))
        files.write(tmp_path / f"{name}.safetensors", to_arrays(model), meta)
    small = Study("Small", study.base, {"network": rows, "seed": {"0": {}}}, files=study.files, facts=study.facts)
    fields = {"data.root": tmp_path / "rgb" / "frames", "data.lists": tmp_path, "data.classes": ()}
    fields |= {"frames.flow": tmp_path / "flow" / "frames", "weights.sports1m": tmp_path / "sports1m.safetensors"}
    fields |= {"data.num_frames": 4, "data.short_side": 24, "data.crop_size": 16, "train.epochs": 16.0}
    fields |= {"train.eval_every": 99.0, "eval.num_clips": 2, "optimizer.warmup_epochs": 0.0}
    settings = [f"{name}={value}" for name, value in fields.items()]
    said: list[str] = []
    assert runner.run_cells(cells(with_settings(small, settings)), tmp_path / "out", said.append) == (1, 0), said
    assert any("Sports-1M, optical flow" in line and "--set weights.sports1m_flow=PATH" in line for line in said)
    settings.append(f"weights.sports1m_flow={tmp_path / 'sports1m_flow.safetensors'}")
    grid = cells(with_settings(small, settings))
    assert runner.run_cells(grid, tmp_path / "out", said.append) == (3, 0), said
    logged = capsys.readouterr().out
    for name in ("sports1m", "sports1m_flow"):
        assert f"values from {tmp_path / name}.safetensors" in logged
    assert logged.count("init: the classifier starts random: the weights have 487 classes, this run 2") == 2
    page = write_results(dataclasses.replace(small, notes=study.notes), grid, tmp_path / "out").read_text()
    assert "3 of 3 trainings are done." in page and page.count("| Sports-1M |") == 3
    outcome = runner.read_outcome(tmp_path / "out" / grid[2].name)
    assert outcome is not None and 0 <= outcome.metrics["val/top1_video"] <= 1
