"""Writes docs/config.md, the page of all config fields, from r23d_jax/config/: python .ci/config_page.py."""

import dataclasses
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works without an installation

from r23d_jax import config  # noqa: E402
from r23d_jax.config.fields import Constraint, Group  # noqa: E402
from r23d_jax.models.registry import FAMILIES  # noqa: E402
from r23d_jax.training.optimizer import OPTIMIZERS, SCHEDULES  # noqa: E402

PAGE = ROOT / "docs" / "config.md"
SOURCES = [ROOT / "r23d_jax" / "config" / name for name in ("__init__.py", "data.py", "motion.py")]

HEADER = """# All config fields

A config file returns a `Config`; any field is set on the command line, after `--config`:

```bash
python launch.py --config=configs/quickstart.py --config.train.epochs=2 --config.data.crop_scales="(1.0, 0.8)"
```

Defaults are those of the field; a config file may set another. `.ci/config_page.py` writes this page.
"""

# Fields whose values are the keys of a table that the config does not import
TABLES = {
    "config.model.family": FAMILIES,
    "config.optimizer.name": OPTIMIZERS,
    "config.optimizer.schedule": SCHEDULES,
}

# No constraint accepts all of these, so that each states its words for one of them.
WRONG = ("\0", float("nan"), (), (float("nan"),), (float("nan"), float("nan")), (2.0, 1.0))


def page() -> str:
    """The page as Markdown."""
    notes = {name: note for file in SOURCES for name, note in _notes(file.read_text(encoding="utf-8"))}
    sections = [HEADER]
    for group in _groups(config.Config):
        hints = typing.get_type_hints(group, include_extras=True)
        rows = []
        for field in dataclasses.fields(group):
            if not dataclasses.is_dataclass(field.type):
                table = TABLES.get(f"{group.place}.{field.name}")
                wanted = ", ".join(table) if table else _wanted(hints[field.name])
                rows.append(f"| `{field.name}` | {_default(field)} | {wanted} | {notes[group.__name__, field.name]} |")
        table = ["| field | default | values | meaning |", "|---|---|---|---|", *rows]
        sections.append(f"## {group.place}\n\n{group.__doc__}\n\n" + "\n".join(table) + "\n")
    return "\n".join(sections)


def _groups(kind: type[Group]) -> Iterator[type[Group]]:
    yield kind
    for field in dataclasses.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, Group):
            yield from _groups(field.type)


def _default(field: dataclasses.Field) -> str:
    return f'`"{field.default}"`' if isinstance(field.default, str) else f"`{field.default}`"


def _wanted(hint: typing.Any) -> str:
    """The type of a field and what its constraints ask for."""
    if typing.get_origin(hint) is typing.Annotated:
        kind, *constraints = typing.get_args(hint)
        words = [_words(constraint) for constraint in constraints]
        return "; ".join([_wanted(kind), *words]) if kind is not str else "; ".join(words)
    if typing.get_origin(hint) is tuple:
        kinds = [_wanted(kind) for kind in typing.get_args(hint) if kind is not Ellipsis]
        return f"tuple of {kinds[0]}" if Ellipsis in typing.get_args(hint) else f"({', '.join(kinds)})"
    return hint.__name__


def _words(constraint: Constraint) -> str:
    for value in WRONG:
        try:
            complaint = constraint(value)
        except (TypeError, IndexError):  # a constraint on another type
            continue
        if complaint:
            return complaint.removeprefix("must be ").removeprefix("unknown; known: ")
    raise AssertionError(f"a constraint accepts all of {WRONG}")


def _notes(source: str) -> Iterator[tuple[tuple[str, str], str]]:
    """The comment of each field: above it, and behind it."""
    group, above = "", []
    for line in source.splitlines():
        if match := re.match(r"class (\w+)\(", line):
            group = match[1]
        elif match := re.match(r"    # (.*)", line):
            above.append(match[1])
            continue
        elif match := re.match(r"    (\w+): [^#]*(?:  # (.*))?$", line):
            text = " ".join([*above, match[2] or ""]).strip()
            yield (group, match[1]), text.replace("|", "\\|")
        above = []


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
