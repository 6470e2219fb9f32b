"""What fuzzing found of use is run by ordinary tests too; atheris itself is optional."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.fuzz.targets import TARGETS, starting_inputs

ROOT = Path(__file__).resolve().parents[3]
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


@pytest.mark.parametrize("target", TARGETS)
def test_replay(target: str) -> None:
    seeds = sorted((Path(__file__).with_name("corpus") / target).iterdir())
    assert len(seeds) >= 10
    contents = [path.read_bytes() for path in seeds] + starting_inputs(target)
    for content in contents:
        if target != "weights" or not content.startswith(b"t") or importlib.util.find_spec("torch"):
            TARGETS[target](content)


@pytest.mark.skipif(HAS_ATHERIS, reason="atheris is installed")
def test_without_atheris_it_says_so() -> None:
    args = [sys.executable, "-m", "tests.hostile.fuzz", "lists", "--seconds", "1"]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr == "fuzzing needs atheris, which is not installed: pip install atheris\n"


@pytest.mark.long
@pytest.mark.skipif(not HAS_ATHERIS, reason="atheris is not installed: pip install atheris")
@pytest.mark.parametrize("target", TARGETS)
def test_fuzzing_runs(target: str, tmp_path: Path) -> None:
    args = [sys.executable, "-m", "tests.hostile.fuzz", target, "--seconds", "5", "--corpus", str(tmp_path)]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "number_of_executed_units" in done.stderr
