"""What the source may not call, beyond what ruff's rules S and TID251 (pyproject.toml) find."""

import ast
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Studies are config files, which are Python.
EXCUSED = {("r23d_jax/config/files.py", "exec_module"), ("configs/study.py", "exec_module")}
SOURCES = [
    ROOT / "launch.py",
    *sorted(path for top in ("r23d_jax", "benchmarks", "configs", ".ci") for path in (ROOT / top).rglob("*.py")),
]


def faults(source: str) -> list[str]:
    """Loaders that may unpickle, modules and names that run by a name from elsewhere, and a shell that may be true."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: word.value for word in node.keywords}
        if name in ("np.load", "numpy.load") and not _is(given.get("allow_pickle"), False):
            found.append("np.load")
        if name.endswith("torch.load") and not _is(given.get("weights_only"), True):
            found.append("torch.load")
        found += [word for word in ("allow_pickle", "shell") if word in given and not _is(given[word], False)]
        found += [last for last in ("__import__", "exec_module", "exec") if name.rpartition(".")[2] == last]
    return found


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_runs_data(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    found = [fault for fault in faults(path.read_text()) if (name, fault) not in EXCUSED]
    assert not found, f"{name}: {found}"


@pytest.mark.parametrize(
    "source",
    [
        "np.load(f)", "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=x)", "np.savez(f, allow_pickle=True)",
        "torch.load(f)", "torch.load(f, weights_only=False)", "subprocess.Popen(x, shell=flag)",
        "spec.loader.exec_module(m)", "__import__(name)", "builtins.exec(text)",
    ],
)  # fmt: skip
def test_what_is_looked_for_is_found(source: str) -> None:
    assert faults(source)


def test_what_is_right_is_not_found() -> None:
    assert not faults("np.load(f, allow_pickle=False); torch.load(f, weights_only=True); model.eval(); a.load(f)")


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        ("S102", "exec(text)"),
        ("S202", "import tarfile\ntarfile.open(f).extractall()"),
        ("S301", "import pickle\npickle.load(f)"),
        ("S302", "import marshal\nmarshal.loads(f)"),
        ("S306", "import tempfile\ntempfile.mktemp()"),
        ("S307", "eval(text)"),
        ("S403", "from pickle import loads"),
        ("S403", "import shelve"),
        ("S506", "import yaml\nyaml.load(f)"),
        ("S602", "import subprocess\nsubprocess.run('ls', shell=True)"),
        ("S605", "import os\nos.system('ls')"),
        ("S605", "import subprocess\nsubprocess.getoutput(text)"),
        ("TID251", "from yaml import unsafe_load"),
        ("TID251", "import joblib"),
        ("TID251", "import torch\ntorch.hub.load(name)"),
        ("TID251", "import shutil\nshutil.unpack_archive(f)"),
    ],
)
def test_ruff_finds_the_rest(rule: str, source: str) -> None:
    ruff = pytest.importorskip("ruff", reason="ruff is not installed: pip install -r requirements-dev.txt")
    command = [
        ruff.find_ruff_bin(),
        "check",
        "-",
        "--no-cache",
        "--output-format=json",
        "--stdin-filename=r23d_jax/new.py",
    ]
    done = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT, check=False)
    assert rule in {found["code"] for found in json.loads(done.stdout)}
