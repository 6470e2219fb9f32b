"""Every command in the documentation works: its arguments are accepted, its files exist, and the README's run."""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from r23d_jax.__main__ import main
from r23d_jax.commands import plan, train
from r23d_jax.config import Config, validate
from r23d_jax.config.files import call_file
from r23d_jax.runtime.absent import KINDS
from r23d_jax.study.grid import Study, cells
from r23d_jax.weights.state_dicts import to_torch
from tests.documented import ROOT, Command, commands, configs
from tests.hostile.reliability.harness import write_videos
from tests.weights.random_networks import trained

OTHER_PROGRAMS = {
    "apt-get",
    "mutmut",
    "ruff",
    "pyright",
    "rm",
    "git",
    "docker",
    ".venv/bin/pre-commit",
    "/tmp/try/bin/r23d-jax",
}
SHOWN = list(commands())


class Accepted(BaseException):
    """Ends a program as soon as its arguments are parsed."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def accept(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> argparse.Namespace:
        parse(self, *args, **kwargs)
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", accept)


def test_the_pages_have_commands() -> None:
    assert len(SHOWN) > 40 and {"README.md", "docs/converting.md"} <= {command.page for command in SHOWN}


@pytest.mark.parametrize("command", SHOWN, ids=str)
@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")  # ml_collections' own way to run a file
@pytest.mark.usefixtures("parse_only")
def test_a_documented_command_is_accepted(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", list(command.words))
    module, arguments = command.module, command.arguments if command.module else []
    if module == "launch.py" or (module == "r23d_jax" and arguments[0] in ("train", "evaluate")):
        mode = "" if module == "launch.py" else arguments.pop(0)
        flags = train._parse(arguments, mode)
        validate(flags.config)
    elif module == "r23d_jax" and arguments[0] == "plan":
        flags = plan._parse(arguments[1:])
        validate(flags.config)
        assert flags.devices.partition(":")[0] in KINDS
    elif module == "r23d_jax":
        with pytest.raises(Accepted):
            main(arguments)
    elif module.startswith(("benchmarks.", "tests.")):
        spec = importlib.util.find_spec(module)
        assert spec is not None
        name = module if spec.submodule_search_locations is None else f"{module}.__main__"
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(Accepted):
            importlib.import_module(name).main()
    elif module == "pytest":
        missing = [word for word in arguments if word.startswith("tests/") and not (ROOT / word).exists()]
        assert not missing
    elif module == "pip" or command.words[0].endswith("pip"):
        _check_installation(list(command.words))
    elif module.endswith(".py"):
        assert (ROOT / module).is_file()
    elif command.words[0] in ("sh", "bash") or command.words[0].endswith(".sh"):
        script = next(word for word in command.words if word.endswith(".sh"))
        assert (ROOT / script).is_file()
    else:
        assert module in ("venv", "build") or command.words[0] in OTHER_PROGRAMS, f"nothing checks {command}"


def _check_installation(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for flag, word in zip(["", *words], words, strict=False):
        if flag == "-r":
            assert (ROOT / word).is_file()
        if match := re.fullmatch(r"\.\[(.+)\]", word):
            assert set(match[1].split(",")) <= set(extras)


@pytest.mark.parametrize(("page", "config"), sorted(set(configs())))
def test_a_documented_config_exists(page: str, config: str) -> None:
    name, _, arg = config.partition(":")
    function = "get_study" if name == "study.py" else "get_config"
    assert call_file(str(ROOT / "configs" / name), function, object, arg) is not None


@pytest.mark.parametrize(
    ("page", "function", "kind"), [("training.md", "get_config", Config), ("studies.md", "get_study", Study)]
)
def test_a_documented_file_of_ones_own_is_valid(
    page: str, function: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(text)
    made = call_file(str(tmp_path / "mine.py"), function, kind, "")
    if isinstance(made, Study):
        assert len(cells(made)) == 9
    else:
        assert validate(made).data.classes == ("PullUps", "PushUps")


# What the README asks a reader to bring, and overrides that make its commands a matter of seconds.
SMALL = [
    f"--config.{field}={value}"
    for field, value in {
        "model.depth": 10,
        "train.global_batch_size": 2,
        "train.epochs": 0.5,
        "data.num_frames": 4,
        "data.short_side": 48,
        "data.crop_size": 32,
        "eval.views": "uniform",
        "eval.num_clips": 1,
        "parallel.compute_dtype": "float32",
    }.items()
]
SHORT_STUDY = ["--only", "f-R2D_seed0", "--set", "train.epochs=0.1", "--set", "eval.num_clips=1"]


@pytest.mark.long
def test_the_readme_works_from_top_to_bottom(tmp_path: Path) -> None:
    """Its commands in their order, in a folder that has what the README names. Only sizes are made smaller."""
    torch = pytest.importorskip("torch")
    for name in ("launch.py", "configs", "r23d_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_videos(tmp_path / "UCF-101", count=8, groups=4)
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    videos = sorted(path.relative_to(tmp_path / "UCF-101") for path in (tmp_path / "UCF-101").rglob("*.mp4"))
    for part in ("train", "test"):
        chosen = [video.with_suffix(".avi") for video in videos if ("_g01_" in video.name) == (part == "test")]
        labels = {"train": {"Diving": " 1", "Rowing": " 2"}}.get(part, {})
        rows = [f"{video}{labels.get(video.parent.name, '')}\n" for video in chosen]
        (lists / f"{part}list01.txt").write_text("".join(rows))
    (lists / "classInd.txt").write_text("1 Diving\n2 Rowing\n")
    shutil.copy(tmp_path / "UCF-101" / videos[0], tmp_path / "my_video.mp4")
    (tmp_path / "my_clips").symlink_to(tmp_path / "UCF-101")
    weights = to_torch(trained("r2plus1d_10", num_classes=400), "vmz")
    torch.save({"state_dict": weights}, tmp_path / "r2plus1d_34.pth")
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    ran = 0
    for command in commands([ROOT / "README.md"]):
        if command.words[0] != "python" or command.module not in ("launch.py", "r23d_jax"):
            continue
        trains = command.module == "launch.py"
        more = SMALL if trains else SHORT_STUDY if command.arguments[0] == "study" else []
        words = [sys.executable, *command.words[1:], *more]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran > 8
