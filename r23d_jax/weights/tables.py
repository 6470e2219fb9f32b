"""A network's values under the names of a code base: one table to fill, write and compare networks."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from r23d_jax.config import UserError
from r23d_jax.models.functional import flatten, values
from r23d_jax.models.network import VideoNetwork
from r23d_jax.weights import compare, layouts
from r23d_jax.weights.layouts import Layout


class ConversionError(UserError, ValueError):
    """Weights do not fit the network; the message lists every name that is missing, left over or of another shape."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One value of a network: its path in our trees, and its name and shape in a layout."""

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """All values of a network in a layout; `gammas` are in the layout but not in the network, and must be one."""

    layout: Layout
    entries: tuple[Entry, ...]
    gammas: tuple[tuple[str, tuple[int, ...]], ...]
    counters: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Their names and shapes."""
        return {entry.name: entry.shape for entry in self.entries} | dict(self.gammas)


def make_table(model: VideoNetwork, layout: Layout) -> Table:
    """Names every value of a network, perhaps abstract; raises ConversionError if the layout has no name for one."""
    tree, batch_stats = values(model)
    only_classifier = set(tree.get("head", {})) == {"classifier"}
    params = flatten(tree)
    norm_leaves = dict(layout.norm_leaves)
    entries, gammas, counters = [], [], []
    for path, leaf in {**params, **flatten(batch_stats)}.items():
        try:
            name = layouts.their_name(path, layout, only_classifier)
        except KeyError as error:
            raise ConversionError(f"these names have none for {error.args[0]}: it is another network's") from None
        empty = np.broadcast_to(np.zeros((), np.float32), leaf.shape)
        shape = layouts.encode(path, empty, layout).shape
        entries.append(Entry(path, name, shape))
        if path[-1] == "var":
            module = name.removesuffix(norm_leaves["var"])
            if layout.counter:
                counters.append(module + layout.counter)
            if layout.gammas and (*path[:-1], "scale") not in params:
                gammas.append((module + norm_leaves["scale"], shape))
    return Table(layout, tuple(entries), tuple(gammas), tuple(counters))


def differences(table: Table, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Differences between weights and the table, one line each."""
    found = {name: list(array.shape) for name, array in arrays.items()}
    problems = compare.differences(found, {name: list(shape) for name, shape in table.shapes.items()})
    problems += [
        f"{name}: not all ones, and this network's BN has no gamma"
        for name, _ in table.gammas
        if name in arrays and not np.all(arrays[name] == 1)
    ]
    return problems


def part_of(path: tuple[str, ...]) -> str:
    """The part of a network that a value belongs to: "stem", "stage1" .. "stage4" or "head"."""
    return path[0] if path[0] != "stages" else f"stage{int(path[1]) + 1}"
