"""`--json`: standard output is JSON and nothing else, with the fields that docs/json.md lists."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from r23d_jax.__main__ import COMMANDS, main
from r23d_jax.commands.json_output import json_document, print_json
from r23d_jax.config import Config
from r23d_jax.runtime import absent, backend
from r23d_jax.training import input_rate, plan
from tests.hostile.reliability.harness import write_videos
from tests.training.tiny import start, tiny_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning"),  # ml_collections' way to run a file
]

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
LINE = re.compile(r"^\| (`[a-z].*?) \| (.*?) \| (.*?) \| (.*?) ?\|$", re.M)
TINY = [
    f"--config.{field}={value}"
    for field, value in {
        "model.family": "r2plus3d",
        "model.depth": 10,
        "model.widths": "(4,4,8,8)",
        "model.head.num_heads": 2,
        "data.num_frames": 4,
        "data.short_side": 16,
        "data.crop_size": 16,
        "train.global_batch_size": 8,
        "train.epochs": 1,
        "eval.num_clips": 1,
        "compilation_cache": False,
    }.items()
]
STUDY = "study:heads"


def documented() -> dict[str, tuple[set[str], set[str]]]:
    """By command: the fields that are always there, and those that may be."""
    text = PAGE.read_text().partition("## Which")[0]
    rows = {}
    for names, _, always, sometimes in LINE.findall(text):
        for name in re.findall("`(.+?)`", names):
            rows[name] = set(re.findall("`(.+?)`", always)), set(re.findall("`(.+?)`", sometimes))
    return rows


def test_numbers_of_numpy_are_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.array([1.0, np.nan]),
        "d": Path("x"),
        "e": np.float32("inf"),
    }
    print_json(values)
    assert json.loads(capsys.readouterr().out) == {"a": 0.5, "b": 3, "c": [1.0, None], "d": "x", "e": None}


def test_the_page_has_every_command() -> None:
    assert {name.split()[0] for name in documented()} == set(COMMANDS) - {"serve"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("json")
    write_videos(root / "videos", count=8, groups=4)
    return root


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    """A training of prepared videos, with nothing on standard output."""
    assert main(["prepare", "--videos", str(root / "videos"), "--out", str(root / "data"), "--workers", "1"]) == 0
    assert main(["train", *words(root)]) == 0
    return root / "run"


def words(root: Path) -> list[str]:
    data = [f"--config.data.root={root / 'data' / 'frames'}", f"--config.data.lists={root / 'data' / 'lists'}"]
    return ["--config=defaults", f"--workdir={root / 'run'}", *data, *TINY]


def told(capfd: pytest.CaptureFixture[str], name: str, *argv: object, status: int = 0) -> tuple[dict[str, Any], str]:
    """What a command prints: one object with the documented fields; and its other words."""
    capfd.readouterr()
    assert main([*map(str, argv), "--json"]) == status
    out, err = capfd.readouterr()
    assert out.endswith("\n") and out.count("\n") == 1, out
    row = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    always, sometimes = documented()[name]
    assert always <= set(row) and set(row) - always <= sometimes, (always ^ set(row)) - sometimes
    return row, err


def test_a_training_and_its_evaluation(root: Path, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row, err = told(capfd, "evaluate", "evaluate", *words(root))
    kept = json.loads(next((run / "evaluations").rglob("evaluation.json")).read_text())
    assert row["finished"] and row["metrics"] == kept["metrics"] and row["workdir"] == str(run)
    assert "the last checkpoint" in err and "clip top-1" in err
    row, err = told(capfd, "train", "train", *words(root))
    assert row["finished"] and row["class_names"] == ["Diving", "Rowing"] and "report: " in err


def test_commands_about_data(root: Path, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    videos = root / "videos"
    row, _ = told(capfd, "prepare", "prepare", "--videos", videos, "--out", root / "data", "--workers", 1)
    assert (row["ready"], row["new"], row["broken"]) == (8, 0, 0) and "--config" in row["next"]
    row, err = told(capfd, "new", "new", videos, "--out", tmp_path / "project", "--workers", 1)
    assert row["classes"] == {"Diving": 4, "Rowing": 4} and row["weights"] == "" and "next, to train" in err


def test_commands_that_use_a_network(root: Path, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    video = next((root / "videos").rglob("*.mp4"))
    for name in ("predict", "explain"):
        _, err = told(capfd, name, name, video, "--weights", run) if name == "explain" else predicted(capfd, video, run)
        assert "r2plus3d_10, 2 classes, step 1, the best checkpoint, video top-1" in err, "it says which it took"
    row, err = told(capfd, "features", "features", video, "--weights", run, "--out", tmp_path / "f.npz")
    assert row["rows"] == 1 and "the best checkpoint" in row["protocol"]["weights"] and "the best checkpoint" in err
    row, _ = told(capfd, "export", "export", "--workdir", run, "--to", tmp_path / "net.safetensors")
    assert row["step"] == 1 and row["chosen"].startswith("the best checkpoint") and row["error"] == 0
    row, _ = told(capfd, "export", "export", "--workdir", run, "--which", "latest", "--to", tmp_path / "n.stablehlo")
    assert row["chosen"] == "the last checkpoint" and row["error"] < 1e-5
    row, _ = told(capfd, "convert", "convert", "--from", tmp_path / "net.safetensors", "--to", tmp_path / "again")
    assert row["network"] == "r2plus3d_10" and row["classes"] == 2 and row["preprocessing"]["crop_size"] == 16
    row, _ = told(capfd, "convert", "convert", "--from", run, "--to", tmp_path / "again.safetensors")
    assert "step 1, the best checkpoint" in row["from"]
    row, _ = told_status(capfd, run)
    assert row["verdict"] == "finished" and row["step"] == 1


def predicted(capfd: pytest.CaptureFixture[str], video: Path, run: Path) -> tuple[dict[str, Any], str]:
    assert main(["predict", str(video), "--weights", str(run), "--json"]) == 0
    out, err = capfd.readouterr()
    row = json.loads(out)
    text = (PAGE.parent / "predict.md").read_text().partition("### JSON")[2].partition("###")[0]
    assert set(row) <= set(re.findall("`(.+?)`", text)) and {"video", "frames", "predictions"} <= set(row)
    return row, err


def told_status(capfd: pytest.CaptureFixture[str], run: Path) -> tuple[dict[str, Any], str]:
    assert main(["status", str(run), "--json"]) == 0
    out, err = capfd.readouterr()
    assert documented()["status"][0] - {"..."} <= set(json.loads(out))
    return json.loads(out), err


def test_tables(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row, _ = told(capfd, "info", "info")
    assert row["families"]["ip_csn"] == [50, 101, 152, 200]
    row, _ = told(capfd, "info NAME", "info", "r2plus1d_tv_18", "--classes", 400)
    assert row["parameters"] == 31_505_325 == sum(part["parameters"] for part in row["parts"])
    row, _ = told(capfd, "info --pretrained", "info", "--pretrained")
    assert row["weights"]["r3d_18.kinetics400"]["accuracy"] == [63.2, 83.479]
    row, _ = told(capfd, "requirements", "requirements")
    assert row["packages"]["jax"] == jax.__version__ and row["commands"]["info"] == {"missing": [], "install": ""}
    row, err = told(capfd, "study --list", "study", "--config", STUDY, "--workdir", tmp_path / "study", "--list")
    assert len(row["trainings"]) == 12 and row["trainings"][0]["status"] == "waiting" and "12 trainings" in err


def test_a_study(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from r23d_jax.study import run as runner

    monkeypatch.setattr(runner, "run_cells", lambda cells, workdir: (len(cells) - 1, 1))
    row, _ = told(capfd, "study", "study", "--config", STUDY, "--workdir", tmp_path, status=3)
    assert (row["trainings"], row["done"], row["failed"]) == (12, 11, 1) and Path(row["results"]).exists()


def test_a_plan(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    state = start(tiny_config())[0]
    text = "HloModule m\n\nENTRY %main (a: f32[8]) -> f32[8] {\n  ROOT %a = f32[8]{0} parameter(0)\n}\n"

    def compile_step(cfg: Config, target: absent.Absent, read: input_rate.Input) -> plan.Program:
        return plan.Program(state, cfg.train.global_batch_size << 30, 200, 10, text)

    target = absent.Absent("h100", absent.Kind("gpu", 64 << 30, 989e12), jax.devices()[:1])
    for module in (absent, backend):
        monkeypatch.setattr(module, "prepare_process", lambda: None)
    monkeypatch.setattr(absent, "absent_devices", lambda text: target)
    monkeypatch.setattr(plan, "compile_step", compile_step)
    monkeypatch.setattr(input_rate, "_SECONDS", 0.05)
    row, err = told(capfd, "plan", "plan", "--config=defaults", "--devices=h100:1", "--largest", *TINY)
    assert row["fits"] and row["bytes"]["total"] == (8 << 30) + 210 and row["bytes"]["usable"] == target.kind.usable
    assert 44 <= row["largest"][0]["clips"] <= 47 and "It fits" in err and "again: " in err


def test_an_error_prints_no_object(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--workdir", str(tmp_path), "--to", str(tmp_path / "a.safetensors"), "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: there is no checkpoint in ")


def test_what_is_not_finite_is_null(capfd: pytest.CaptureFixture[str]) -> None:
    with json_document(True) as row:
        row |= {"a": float("nan"), "b": [(float("inf"), 1)], "path": Path("p")}
    assert json.loads(capfd.readouterr().out) == {"a": None, "b": [[None, 1]], "path": "p"}
