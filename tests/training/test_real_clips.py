"""The way of a user with real videos: prepare, train, stop, go on, predict."""

import os
from pathlib import Path

import pytest

from r23d_jax.__main__ import main
from r23d_jax.runtime.journal import read_metrics
from r23d_jax.training import loop
from tests.training.tiny import tiny_config

CLASSES = ("HandstandPushups", "JumpingJack", "PullUps", "PushUps", "WallPushups")


@pytest.mark.real_clips
def test_from_video_files_to_a_prediction(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two videos a class: of a test group of split 1 and of a training group; the others of the lists are missing."""
    source, chosen = real_data / "ucf5" / "UCF-101", tmp_path / "videos"
    for folder in sorted(source.iterdir()):
        (chosen / folder.name).mkdir(parents=True)
        for group in ("g01", "g10"):
            video = next(path for path in sorted(folder.iterdir()) if f"_{group}_" in path.name)
            os.symlink(video.resolve(), chosen / folder.name / video.name)
    assert main(["prepare", "--videos", str(chosen), "--out", str(tmp_path / "out"), "--short-side", "40"]) == 0

    cfg = tiny_config()
    cfg.data.root, cfg.data.lists = str(tmp_path / "out" / "frames"), str(real_data / "ucf5" / "ucfTrainTestlist")
    cfg.data.classes, cfg.data.short_side, cfg.data.crop_size = CLASSES, 36, 32
    cfg.train.epochs, cfg.train.eval_every = 4.0, 4.0
    monkeypatch.setattr(loop.report, "write_report", lambda *args, **options: tmp_path)  # other tests read reports
    lines: list[str] = []
    result = loop.train(cfg, tmp_path / "run", log=lines.append)
    assert result is not None and 0 <= result.metrics["val/top1_video"] <= 1
    assert any(line.startswith("train: 5 videos of 5 classes") for line in lines)
    assert any("listed videos have no frames" in line for line in lines)
    assert [row for row in read_metrics(tmp_path / "run") if "val/top1_video" in row]

    capsys.readouterr()
    video = next(chosen.glob("PullUps/*_g01_*"))
    assert main(["predict", "--workdir", str(tmp_path / "run"), str(video)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CLASSES) and "%" in out
