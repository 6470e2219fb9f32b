"""What a study consists of: a base config, and axes whose values are combined into cells."""

import ast
import copy
import dataclasses
import itertools
import re
import typing
from collections.abc import Mapping
from typing import Any

from r23d_jax.config import Config, ConfigError, UserError, check_override, nearest, validate
from r23d_jax.runtime.program import command

# A value of an axis: fields of the config, as on the command line but without "config.", to what they are set.
Overrides = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of trainings.

    Attributes:
      title: heads the results.
      base: the config that every cell starts from.
      axes: name of an axis -> label of a value -> what it overrides. The axes `seed` and `split` are repetitions:
        results are means over them, with their spread. All combinations are cells.
      skip: combinations that are left out, each as {axis: label}.
    """

    title: str
    base: Config
    axes: Mapping[str, Mapping[str, Overrides]]
    skip: tuple[Mapping[str, str], ...] = ()


REPETITIONS = ("seed", "split")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training of a study.

    Attributes:
      name: of its folder, made of its labels.
      labels: axis -> label.
      config: validated.
    """

    name: str
    labels: dict[str, str]
    config: Config

    @property
    def group(self) -> tuple[str, ...]:
        """Labels of the axes that are compared, which repetitions share."""
        return tuple(label for axis, label in self.labels.items() if axis not in REPETITIONS)


def cells(study: Study) -> list[Cell]:
    """All cells, repetitions last to vary least: every comparison is complete once before any is repeated.

    Raises:
      UserError: naming the cell and the field, if an override names no field or gives no valid config.
    """
    axes = sorted(study.axes, key=lambda axis: axis not in REPETITIONS)  # the first varies slowest
    made = []
    for values in itertools.product(*(study.axes[axis].items() for axis in axes)):
        chosen = dict(zip(axes, values, strict=True))
        labels = {axis: chosen[axis][0] for axis in study.axes}
        if any(all(labels.get(axis) == label for axis, label in left_out.items()) for left_out in study.skip):
            continue
        config = copy.deepcopy(study.base)
        for axis, (label, overrides) in chosen.items():
            for path, value in overrides.items():
                _set(config, path, value, f"axis {axis}, value {label}")
        name = "_".join(_in_file_name(axis, label) for axis, label in labels.items())
        try:
            validate(config)
        except ConfigError as error:
            raise UserError(f"cell {name}: {error}") from None
        made.append(Cell(name, labels, config))
    hidden = [cell.name for cell in made if cell.name.startswith(".")]
    if hidden:  # ".." would be the folder above
        raise UserError(f"study {study.title!r}: a cell's folder would be called {hidden[0]!r}; give it another label")
    if len({cell.name.casefold() for cell in made}) < len(made):
        raise UserError(f"study {study.title!r}: two cells have one name; give the values of an axis other labels")
    if not made:
        raise UserError(f"study {study.title!r}: has no cells; every axis needs a value")
    return made


def _in_file_name(axis: str, label: str) -> str:
    short = re.sub(r"[^\w.+-]+", "-", re.sub(r"[()]", "", label))
    return f"{axis}{short}" if axis in REPETITIONS else short


def shard(all_cells: list[Cell], text: str) -> list[Cell]:
    """The cells of one machine: "i/n" with i from 1 to n; "" for all.

    Raises:
      UserError: if the text is something else.
    """
    if not text:
        return all_cells
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text}: must be i/n with i from 1 to n, e.g. 1/4")
    return all_cells[int(match[1]) - 1 :: int(match[2])]


def with_settings(study: Study, settings: list[str]) -> Study:
    """The study with fields of its base set to other values.

    Args:
      study: is not changed.
      settings: each "data.root=PATH": a field, and a Python value or plain text.

    Raises:
      UserError: for something else, or an unknown field. A wrong value shows when the cells are made.
    """
    base = copy.deepcopy(study.base)
    for text in settings:
        path, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: must be FIELD=VALUE, e.g. data.root=data/frames")
        try:
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed = value
        _set(base, path, parsed, "--set")
    return dataclasses.replace(study, base=base)


def _set(config: Config, path: str, value: Any, where: str) -> None:
    try:
        check_override(f"config.{path}")
    except ConfigError as error:
        raise UserError(f"{where}: {str(error).removeprefix('--')}") from None
    *groups, leaf = path.split(".")
    node: Any = config
    for group in groups:
        node = getattr(node, group)
    setattr(node, leaf, value)


def load_study(path: str, arg: str) -> Study:
    """Runs a study's file and asks its `get_study(arg)`.

    Raises:
      UserError: if there is no such file, or it has no `get_study`.
    """
    import importlib.util
    from pathlib import Path

    file = Path(path)
    if not file.is_file():
        known = [str(found) for found in sorted(Path("configs").glob("*.py"))]
        raise UserError(f"--config={path}: no such file; {nearest(path, known)}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_study"):
        raise UserError(f"--config={path}: has no get_study(arg); it describes one training: use {command('train')}")
    return typing.cast(Study, module.get_study(arg))
