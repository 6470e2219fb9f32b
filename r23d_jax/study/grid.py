"""A study: a base config, and axes whose values are combined into cells, each a training."""

import ast
import copy
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r23d_jax.config import Config, ConfigError, UserError, check_override, look_up, validate
from r23d_jax.config.files import call_file

# A value of an axis: new values of config fields, which are named as on the command line without "config.".
Overrides = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class File:
    """A file or folder that rows of a study need, and that nobody can make for the user."""

    about: str  # what it is and where it comes from
    path: str = ""  # where it is; "" until the user says so

    @property
    def exists(self) -> bool:
        """Whether it is there; a TensorFlow checkpoint is the name before `.index`."""
        return bool(self.path) and (Path(self.path).exists() or Path(f"{self.path}.index").is_file())


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of trainings."""

    title: str  # heading of the results
    base: Config  # the config that every cell starts from
    # name of an axis -> label of a value -> its overrides. All combinations are cells. The axes `seed`, `split` and
    # `fold` are repetitions: results are means over them, with standard deviations. A value that overrides
    # `fusion.first` and `fusion.second` with the labels of two earlier values adds the scores of their trainings.
    axes: Mapping[str, Mapping[str, Overrides]]
    skip: tuple[Mapping[str, str], ...] = ()  # combinations to leave out, each as {axis: label}
    # name, e.g. `weights.sports1m` -> file. An override with this name as its value gets the path; while the file is
    # missing, its cells are left out.
    files: Mapping[str, File] = dataclasses.field(default_factory=dict)
    # name of a column -> label -> text, for further columns of the results, such as published accuracies
    facts: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    notes: str = ""  # Markdown below the table of results


FILES = ("weights.", "frames.")  # beginnings of the names of files
REPETITIONS = ("seed", "split", "fold")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training of a study, or one sum of two."""

    name: str  # name of its folder, made of its labels
    labels: dict[str, str]  # axis -> label
    config: Config  # validated
    streams: tuple["Cell", ...] = ()  # the two cells whose scores it adds; () for a training
    # name of a missing file without which it cannot run -> what it is, and the remedy
    needs: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def group(self) -> tuple[str, ...]:
        """Labels of the compared axes, which repetitions share."""
        return tuple(label for axis, label in self.labels.items() if axis not in REPETITIONS)

    @property
    def part(self) -> str:
        """The test videos: the labels of split and fold."""
        return "/".join(self.labels.get(axis, "") for axis in ("split", "fold"))


def cells(study: Study) -> list[Cell]:
    """All cells, repetition by repetition, so that every comparison is complete once before any is repeated.

    Raises:
      UserError: naming the cell and the field, if an override names no field or gives no valid config.
    """
    from r23d_jax.training.optimizer import check_names  # not at the top, so that a study's file need not import jax

    axes = sorted(study.axes, key=lambda axis: axis not in REPETITIONS)  # the first varies slowest
    made: list[Cell] = []
    for values in itertools.product(*(study.axes[axis].items() for axis in axes)):
        chosen = dict(zip(axes, values, strict=True))
        labels = {axis: chosen[axis][0] for axis in study.axes}
        if any(all(labels.get(axis) == label for axis, label in left_out.items()) for left_out in study.skip):
            continue
        config, needed = copy.deepcopy(study.base), {}
        for axis, (label, overrides) in chosen.items():
            for path, value in overrides.items():
                if isinstance(value, str) and value in study.files:
                    needed[value] = file = study.files[value]
                    value = file.path
                _set(config, path, value, f"axis {axis}, value {label}")
        name = "_".join(_in_file_name(axis, label) for axis, label in labels.items())
        try:
            check_names(validate(config).optimizer)
        except ConfigError as error:
            raise UserError(f"cell {name}: {error}") from None
        streams = _streams(name, labels, config, made)
        missing = {key: f"{file.about}: --set {key}=PATH" for key, file in needed.items() if not file.exists}
        for stream in streams:
            missing |= stream.needs
        made.append(Cell(name, labels, config, streams, missing))
    hidden = [cell.name for cell in made if cell.name.startswith(".")]
    if hidden:  # ".." would be the folder above
        raise UserError(f"study {study.title!r}: a cell's folder would be called {hidden[0]!r}; give it another label")
    if len({cell.name.casefold() for cell in made}) < len(made):
        raise UserError(f"study {study.title!r}: two cells have one name; give the values of an axis other labels")
    if not made:
        raise UserError(f"study {study.title!r}: has no cells; every axis needs a value")
    return made


def _streams(name: str, labels: dict[str, str], config: Config, made: Sequence[Cell]) -> tuple[Cell, ...]:
    """The earlier cells that `config.fusion` names by their labels; they differ from this one in no other label."""
    found = []
    for field in ("first", "second") if config.fusion.first or config.fusion.second else ():
        wanted = getattr(config.fusion, field)
        differing = ({axis: a for axis, a in cell.labels.items() if a != labels[axis]} for cell in made)
        cell = next((cell for cell, own in zip(made, differing, strict=True) if list(own.values()) == [wanted]), None)
        if cell is None:
            raise UserError(
                f"cell {name}: fusion.{field}={wanted!r}: must be the label of an earlier value of the same axis"
            )
        found.append(cell)
    return tuple(found)


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
    """A copy of the study with new values for fields of its base, and with paths of its files.

    Args:
      study: a study; unchanged.
      settings: e.g. "data.root=PATH": a field, and a Python value or plain text; or the name of a file of the study,
        and its path.

    Raises:
      UserError: for another form, or an unknown field. `cells` refuses wrong values.
    """
    base, files = copy.deepcopy(study.base), dict(study.files)
    for text in settings:
        path, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: must be FIELD=VALUE, e.g. data.root=data/frames")
        if path.startswith(FILES):
            files[path] = dataclasses.replace(look_up(files, path, "--set"), path=value)
            if not files[path].exists:
                raise UserError(f"--set {text}: there is no such file or folder")
            continue
        try:
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed = value
        _set(base, path, parsed, "--set")
    return dataclasses.replace(study, base=base, files=files)


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
