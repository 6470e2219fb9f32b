"""A network that was saved, exported or converted predicts what the evaluation of its run measured."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from r23d_jax import load_model
from r23d_jax.__main__ import main
from r23d_jax.config import Config, EvalConfig
from r23d_jax.data.sources import open_index
from r23d_jax.evaluation import report
from r23d_jax.evaluation.run import evaluate_checkpoint
from r23d_jax.training import loop
from r23d_jax.weights import files
from tests.test_launch import get_config

pytestmark = pytest.mark.slow

CLIPS = 12  # neither the ten that `predict` takes at least, nor as many as lie side by side in a video


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A few steps of a small quickstart."""
    root = tmp_path_factory.mktemp("quickstart")
    cfg = get_config("quickstart:r2plus3d,avgpool")
    cfg.model.widths, cfg.data.num_frames, cfg.data.crop_size = (4, 8, 8, 16), 8, 24
    cfg.data.root, cfg.train.epochs, cfg.eval.num_clips = str(root / "set"), 0.1, CLIPS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda *args, **options: root)  # which nothing here reads
        assert loop.train(cfg, root / "run", log=lambda line: None) is not None
    return root / "run", cfg


@pytest.fixture(scope="module")
def measured(run: tuple[Path, Config]) -> dict[str, np.ndarray]:
    """What `--mode=eval` gives for two videos: the probabilities of each, by the folder of its frames."""
    workdir, cfg = run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda *args, **options: workdir)
        result = evaluate_checkpoint(cfg, workdir, log=lambda line: None)
    index = open_index(cfg.data, "test")
    return {str(Path(index.frames.locate(row, 0)).parent): result.probabilities[row] for row in (0, -1)}


def save_folder(workdir: Path, to: Path) -> Path:
    pytest.importorskip("huggingface_hub", reason="pip install -r requirements-hub.txt")
    load_model(workdir).save_pretrained(to)
    return to


def export(workdir: Path, to: Path) -> Path:
    if to.suffix == ".pth":
        pytest.importorskip("torch", reason="pip install -r requirements-torch.txt")
    assert main(["export", "--workdir", str(workdir), "--to", str(to)]) == 0
    return to


def convert(workdir: Path, to: Path) -> Path:
    assert main(["convert", "--from", str(workdir), "--to", str(to)]) == 0
    return to


FORMS = {
    "saved folder": lambda run, at: save_folder(run, at / "net"),
    "safetensors": lambda run, at: export(run, at / "net.safetensors"),
    "pth": lambda run, at: export(run, at / "net.pth"),
    "converted file": lambda run, at: convert(run, at / "net.safetensors"),
    "checkpoint of a file": lambda run, at: convert(export(run, at / "net.safetensors"), at / "checkpoint"),
    "saved twice": lambda run, at: save_folder(save_folder(run, at / "net"), at / "again"),
}


def predict(weights: Path, videos: list[str], capsys: pytest.CaptureFixture[str], *more: str) -> list[dict]:
    capsys.readouterr()
    assert main(["predict", "--weights", str(weights), *videos, "--top", "6", "--no-timeline", "--json", *more]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def probabilities(row: dict, names: tuple[str, ...]) -> np.ndarray:
    shares = {best["class"]: best["probability"] for best in row["predictions"]}
    return np.array([shares[name] for name in names])


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_network_predicts_what_its_run_measured(
    form: str,
    run: tuple[Path, Config],
    measured: dict[str, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = FORMS[form](run[0], tmp_path)
    names = load_model(saved).class_names
    for row, wanted in zip(predict(saved, list(measured), capsys), measured.values(), strict=True):
        assert row["clips"] == CLIPS
        np.testing.assert_allclose(probabilities(row, names), wanted, atol=1e-5)
    first, last = measured.values()
    assert np.abs(first - last).max() > 1e-4, "the videos can be told apart, so equality means something"


def test_a_users_own_clips_win_and_files_without_views_get_all_clips(
    run: tuple[Path, Config], measured: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, video = export(run[0], tmp_path / "net.safetensors"), list(measured)[:1]
    assert predict(path, video, capsys, "--clips", "3")[0]["clips"] == 3
    arrays, meta, _ = files.read(path)
    assert meta["eval"] == {"views": "uniform", "num_clips": CLIPS, "crops": 1}
    older = {name: value for name, value in meta.items() if name != "eval"}
    files.write(tmp_path / "older.safetensors", arrays, older)
    assert load_model(tmp_path / "older.safetensors").config.eval == EvalConfig()
    (row,) = predict(tmp_path / "older.safetensors", video, capsys)
    assert row["clips"] == row["frames"] // 8 != CLIPS
    for wrong, message in (({"views": "all"}, "config.eval.views='all': unknown"), ([1], "must be the group")):
        files.write(tmp_path / "wrong.safetensors", arrays, meta | {"eval": wrong})
        assert main(["predict", "--weights", str(tmp_path / "wrong.safetensors"), *video]) == 2
        said = capsys.readouterr().err
        assert "description of its network cannot be used" in said and message in said


def test_programs_and_readers_are_told(
    run: tuple[Path, Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run[0], tmp_path / "run")
    told = {"views": "uniform", "num_clips": CLIPS, "crops": 1}
    for command in (["export", "--workdir"], ["convert", "--from"]):
        assert main([*command, str(tmp_path / "run"), "--to", str(tmp_path / "net.safetensors"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["eval"] == told
    save_folder(tmp_path / "run", tmp_path / "net")
    assert json.loads((tmp_path / "net" / "config.json").read_text())["eval"] == told
    card = (tmp_path / "net" / "README.md").read_text()
    assert f"averages the probabilities of {CLIPS} evenly spaced clips of a video, cropped in the center" in card
