"""A study: a base config, and axes whose values are combined into cells, each a training."""

import ast
import copy
import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

from r23d_jax.config import Config, ConfigError, UserError, check_override, validate
from r23d_jax.config.files import call_file

# A value of an axis: new values of config fields, which are named as on the command line without "config.".
Overrides = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of trainings.

    Attributes:
      title: heading of the results.
      base: the config that every cell starts from.
      axes: name of an axis -> label of a value -> its overrides. All combinations are cells. The axes `seed` and
        `split` are repetitions: results are means over them, with standard deviations.
      skip: combinations to leave out, each as {axis: label}.
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
      name: name of its folder, made of its labels.
      labels: axis -> label.
      config: validated.
    """

    name: str
    labels: dict[str, str]
    config: Config

    @property
    def group(self) -> tuple[str, ...]:
        """Labels of the compared axes, which repetitions share."""
        return tuple(label for axis, label in self.labels.items() if axis not in REPETITIONS)


def cells(study: Study) -> list[Cell]:
    """All cells, repetition by repetition, so that every comparison is complete once before any is repeated.

    Raises:
      UserError: naming the cell and the field, if an override names no field or gives no valid config.
    """
    from r23d_jax.training.optimizer import check_names  # not at the top, so that a study's file need not import jax

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
            check_names(validate(config).optimizer)
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
    """The cells of part "i/n", with i from 1 to n; all for ""; raises UserError for another text."""
    if not text:
        return all_cells
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text}: must be i/n with i from 1 to n, e.g. 1/4")
    return all_cells[int(match[1]) - 1 :: int(match[2])]


def with_settings(study: Study, settings: list[str]) -> Study:
    """A copy of the study with new values for fields of its base.

    Args:
      study: a study; unchanged.
      settings: e.g. "data.root=PATH": a field, and a Python value or plain text.

    Raises:
      UserError: for another form, or an unknown field. `cells` refuses wrong values.
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
    """The study that a file's `get_study(arg)` returns; raises UserError for anything else."""
    return call_file(path, "get_study", Study, arg)
