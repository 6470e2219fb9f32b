"""Which part may import which, read from the source and seen in a process."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Rooms of the package: name -> rooms it may import from besides itself
ALLOWED = {
    "config": set(),
    "progress": set(),
    "backend": set(),
    "disk": {"config"},
    "distributed": {"config"},
    "models": {"config"},
    "data": {"config", "disk", "progress"},
    "weights": {"config", "disk", "models"},
    "portable": {"config", "disk", "models"},
    "tensorflow_checkpoint": {"config", "weights"},
    "parallel": {"config"},
    "evaluation": {"config", "disk", "progress", "models", "data", "parallel"},
    "training": {
        "config",
        "distributed",
        "disk",
        "progress",
        "models",
        "data",
        "weights",
        "tensorflow_checkpoint",
        "parallel",
        "evaluation",
    },
    "study": {"config", "disk", "progress", "models", "data", "evaluation", "training"},
    "commands": {
        "config",
        "disk",
        "progress",
        "models",
        "data",
        "parallel",
        "evaluation",
        "training",
        "weights",
        "tensorflow_checkpoint",
        "portable",
        "study",
    },  # fmt: skip
}
FORBIDDEN = {
    "data": {"jax", "flax", "optax", "orbax"},
    "models": {"tensorflow"},
    "weights": {"tensorflow"},
    "config": {"jax", "flax", "tensorflow", "numpy"},
    "disk": {"jax", "flax", "tensorflow", "numpy"},
    "progress": {"jax", "flax", "tensorflow"},  # data imports it
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(ROOT / "r23d_jax").parts[0].removesuffix(".py")


FILES = [path for path in sorted((ROOT / "r23d_jax").rglob("*.py")) if room(path) in ALLOWED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    allowed = ALLOWED[room(path)] | {room(path)}
    for name in imports(path):
        top, _, inside = name.partition(".")
        assert top not in FORBIDDEN.get(room(path), ()), f"{path} imports {name}"
        assert top != "configs", f"{path} imports a config file"
        if top == "r23d_jax" and inside not in ("", "__version__"):
            assert any(f"{inside}.".startswith(f"{lower}.") for lower in allowed), f"{path} imports {name}"


def test_no_file_imports_itself_in_a_circle() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph = {module: {name for name in imports(path) if name in modules} for module, path in modules.items()}
    graph["r23d_jax.models"] = set()  # its __init__ re-exports, and runs before any of its files
    assert sum(map(len, graph.values())) > 50
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which shows the circle


def test_every_file_is_in_a_room() -> None:
    rooms = {room(path) for path in (ROOT / "r23d_jax").rglob("*.py")}
    assert rooms - {"__init__", "__main__"} == set(ALLOWED)


def test_a_step_and_weights_need_neither_tensorflow_nor_torch() -> None:
    code = (
        "import sys, r23d_jax.models.registry, r23d_jax.models.functional\n"
        "import r23d_jax.weights.state_dicts, r23d_jax.training.step\n"
        "sys.exit(bool({'tensorflow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr or "tensorflow or torch was imported"
