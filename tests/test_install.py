"""The package as pip installs it: what the wheel holds, what it asks for, and the command that it gives."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from r23d_jax.__main__ import COMMANDS
from r23d_jax.commands import requirements
from r23d_jax.config import ConfigError
from r23d_jax.runtime import program

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = ("torch", "onnx", "docs", "serve", "logging", "beam", "hub", "remote", "dev")
FILES = {extra: f"requirements-{extra}.txt" for extra in EXTRAS}


def lines_of(name: str) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("-r ")]


def test_the_wheel_holds_every_folder() -> None:
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "r23d_jax").rglob("__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders | {"r23d_jax.configs"}


def test_extras_ask_for_what_the_requirement_files_do() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for extra, name in FILES.items():
        assert extras[extra] == lines_of(name)
    assert extras["cuda12"] == lines_of("requirements.txt")
    (jax,) = [line for line in lines_of("requirements-slim.txt") if line.startswith("jax>")]
    assert extras["tpu"] == [jax.replace("jax", "jax[tpu]")]
    assert (ROOT / "requirements-cpu.txt").read_text().split() == ["-r", "requirements-slim.txt"] + [
        "-r",
        "requirements-train.txt",
    ]


@pytest.mark.parametrize(
    ("started", "train", "predict"),
    [
        ("/usr/bin/r23d-jax", "r23d-jax train", "r23d-jax predict"),
        ("/src/r23d_jax/__main__.py", "python launch.py", "python -m r23d_jax predict"),
        ("../launch.py", "python ../launch.py", "python -m r23d_jax predict"),
    ],
)
def test_messages_name_the_program_that_was_started(
    monkeypatch: pytest.MonkeyPatch, started: str, train: str, predict: str
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    assert (program.command("train"), program.command("predict")) == (train, predict)


def test_a_config_is_found_by_name_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "configs" / "r23d.py"
    for name in ("r23d", "r23d.py", "configs/r23d.py"):
        assert program.find_config(f"{name}:34") == f"{shipped}:34"
    (tmp_path / "r23d").mkdir()
    assert program.find_config("r23d") == str(shipped), "a folder of this name is no config"
    (tmp_path / "r23d.py").touch()
    assert program.find_config("r23d.py") == "r23d.py", "a file of one's own comes first"
    with pytest.raises(ConfigError, match=r"--config=r32d: no such file; did you mean r3d or r23d"):
        program.find_config("r32d")
    with pytest.raises(ConfigError, match="--config=elsewhere/r23d.py: no such file"):
        program.find_config("elsewhere/r23d.py")


def test_what_is_missing_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    requirements.run(requirements.argparse.Namespace(json=False))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    rows = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in lines if "  " in line)
    assert rows["tensorflow"] == "missing" and rows["train"] == "missing: pip install tensorflow-cpu"
    assert rows["predict"] == rows["predict --picture"] == rows["info"] == "ready"
    assert requirements.explain("train", ModuleNotFoundError("No module", name="a_bug_of_ours")) is None


def test_every_command_and_every_package_that_one_needs_is_listed() -> None:
    assert set(COMMANDS) - {"requirements"} <= set(requirements.NEEDS)
    known = {*requirements.BASE, *requirements.VIDEO, *requirements.OPTIONAL}
    assert set().union(*requirements.NEEDS.values()) <= known, "the table shows whether they are installed"
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in set(COMMANDS) - {"train", "evaluate"})
    assert all(f"[{name}]" in readme for name in PROJECT["project"]["optional-dependencies"])


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"} | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_installed_wheel_works_from_an_empty_folder(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source, installed, empty = tmp_path / "source", tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    for name in ("r23d_jax", "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE", *(path.name for path in ROOT.glob("requirements*.txt"))):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    made = run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)], tmp_path)
    assert made.returncode == 0, made.stderr
    shutil.rmtree(source)
    (wheel,) = tmp_path.glob("*.whl")
    done = run([*pip, "install", "--no-deps", "--target", str(installed), str(wheel)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (installed / "r23d_jax" / "py.typed").is_file()
    assert (installed / "r23d_jax" / "weights" / "kinetics400.txt").is_file()

    def r23d_jax(*args: str) -> subprocess.CompletedProcess[str]:
        return run([str(installed / "bin" / "r23d-jax"), *args], empty, PYTHONPATH=str(installed))

    (empty / "my.py").write_text("from configs import quickstart\n\ndef get_config(arg=''):\n"
                                 "    cfg = quickstart.get_config('f_r2d,avgpool')\n"
                                 "    cfg.model.widths = (4, 4, 4, 4)\n    return cfg\n")  # fmt: skip
    trained = r23d_jax("train", "--config", "my.py", "--config.train.epochs=0.1")
    assert trained.returncode == 0, trained.stderr
    assert (empty / "runs" / "my" / "report.html").is_file()
    evaluated = r23d_jax("evaluate", "--config=my.py", "--config.eval.num_clips=1")
    assert evaluated.returncode == 0 and "checkpoint: " in evaluated.stdout, evaluated.stderr
    listed = r23d_jax("study", "--config", "study:heads", "--workdir", "study", "--list")
    assert listed.returncode == 0 and "12 trainings" in listed.stdout, listed.stderr
    wrong = r23d_jax("train", "--config", "r23d:35")
    assert wrong.returncode == 2 and "depth '35' is unknown" in wrong.stderr
    missing = r23d_jax("train", "--config=configs/r23d.py", "--config.data.lists=lists")
    assert missing.returncode == 2 and "r23d-jax prepare" in missing.stderr and "launch.py" not in missing.stderr
