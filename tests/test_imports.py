"""Which part may import which, read from the source and seen in a process."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Parts of the package -> the parts that each may import from besides itself: only such as stand above it here
ALLOWED = {
    "version": set(),
    "config": set(),
    "runtime": {"config"},
    "models": {"config", "runtime"},
    "data/find": {"config", "runtime"},
    "data/make": {"version", "config", "runtime", "data/find"},
    "data/read": {"config", "runtime", "data/find"},
    "data/sources": {"config", "runtime", "data/find", "data/make"},
}
for name in ("weights", "checkpoint", "evaluation", "training", "study", "commands"):
    ALLOWED[name] = set(ALLOWED)
ALLOWED["weights"] -= {"data/find", "data/make", "data/read", "data/sources"}
ALLOWED["checkpoint"] -= {"data/find", "data/make", "data/read", "data/sources"}

FORBIDDEN = {
    **dict.fromkeys(("data/find", "data/make", "data/read", "data/sources"), {"jax", "flax", "optax", "orbax"}),
    **dict.fromkeys(("models", "checkpoint"), {"tensorflow"}),
    "config": {"jax", "flax", "tensorflow", "numpy"},
}
# Of runtime/, what is needed before jax is, or by data/
LIGHT = {"disk", "progress", "backend", "program", "heartbeat", "interrupts", "remote", "blocks", "mirror", "signed"}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            if node.module != "r23d_jax":  # then its names are parts of the package
                names.add(node.module or "")
    return names


def part(path: Path) -> str:
    names = path.relative_to(ROOT / "r23d_jax").with_suffix("").parts
    return "/".join(names[:2]) if names[0] == "data" else names[0]


FILES = [path for path in sorted((ROOT / "r23d_jax").rglob("*.py")) if part(path) in ALLOWED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    allowed = ALLOWED[part(path)] | {part(path)}
    forbidden = FORBIDDEN.get(part(path), set())
    if part(path) == "runtime" and path.stem in LIGHT:
        forbidden = {"jax", "flax", "tensorflow"}
    for name in imports(path):
        top, _, inside = name.partition(".")
        assert top not in forbidden, f"{path} imports {name}"
        assert top != "configs", f"{path} imports a config file"
        assert not name.startswith("jax._src"), f"{path} imports {name}"
        if top == "r23d_jax":
            inside = inside.replace(".", "/")
            assert inside, f"{path} imports the whole package, which imports it"
            lower = any(f"{inside}/".startswith(f"{other}/") for other in allowed)
            # `from r23d_jax.runtime import disk` is seen as both r23d_jax.runtime and r23d_jax.runtime.disk
            whole = inside == "data" and part(path) not in ("config", "runtime", "models", "weights", "checkpoint")
            assert lower or whole, f"{path} imports {name}"


OTHERS = [
    ROOT / "launch.py",
    *(path for top in ("tests", "benchmarks", "configs", ".ci") for path in sorted((ROOT / top).rglob("*.py"))),
]


@pytest.mark.parametrize("path", [*FILES, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_name_has_one_home(path: Path) -> None:
    """Only `__init__` files hand on what another file defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                home = HOMES.get(node.module or "")
                assert home is None or alias.name in home, f"{path}: {alias.name} is not defined in {node.module}"


def _names_of(path: Path) -> set[str]:
    """What a file defines at its top, in conditions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
    return names


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


HOMES = {_module(path): _names_of(path) for path in FILES if path.name != "__init__.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_no_file_imports_itself_in_a_circle() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph = {module: {name for name in imports(path) if name in modules} for module, path in modules.items()}
    graph["r23d_jax.models"] = set()  # its __init__ re-exports, and runs before any of its files
    assert sum(map(len, graph.values())) > 50
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which shows the circle


def test_every_file_belongs_to_a_part() -> None:
    parts = {part(path) for path in (ROOT / "r23d_jax").rglob("*.py")}
    assert parts - {"__init__", "__main__", "data/__init__"} == set(ALLOWED)


def test_a_step_and_weights_need_neither_tensorflow_nor_torch() -> None:
    code = (
        "import sys, r23d_jax.models.registry, r23d_jax.models.functional\n"
        "import r23d_jax.weights.state_dicts, r23d_jax.training.step, r23d_jax.checkpoint.checkpoint\n"
        "sys.exit(bool({'tensorflow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr or "tensorflow or torch was imported"
