"""A hook of mkdocs: adds the pages of the root folder, and a reference made from the public names."""

import ast
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", **{name: name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")}}
API = """# Python

Arrays are (batch, time, height, width, channels). `r23d_jax.NAME` is the object below; it is imported on first use.

"""


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are not in docs/."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](").replace("](README.md", "](index.md")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "api.md", content=API + "\n".join(f"::: {name}\n" for name in public_names())))
    return files


def public_names() -> list[str]:
    """Where each public name is defined, and the object that `load_model` returns."""
    tree = ast.parse((ROOT / "r23d_jax/__init__.py").read_text(encoding="utf-8"))
    (homes,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES"
    )
    return [f"{home}.{name}" for name, home in homes.items()] + ["r23d_jax.evaluation.trained.TrainedModel"]
