"""The rows of a study: the repetitions of each combination of its compared axes."""

import dataclasses
import statistics
from pathlib import Path

from r23d_jax.runtime.progress import printable
from r23d_jax.study.grid import Cell
from r23d_jax.study.run import Outcome, outcome_of


@dataclasses.dataclass(frozen=True)
class Group:
    """The repetitions of one combination of the compared axes."""

    labels: tuple[str, ...]  # labels of the compared axes
    cells: tuple[Cell, ...]  # all of them
    outcomes: tuple[tuple[Cell, Outcome], ...]  # the finished cells and their outcomes
    failed: int  # number of failed cells
    waiting: int  # number of cells that have not run to their end

    @property
    def name(self) -> str:
        """The labels in one line."""
        return printable(", ".join(self.labels))

    def values(self, metric: str) -> list[float]:
        """Percent, one per seed: the mean over the splits (or folds) that all seeds have."""
        by_seed: dict[str, dict[str, float]] = {}
        for cell, outcome in self.outcomes:
            value = outcome.metrics.get(metric)
            if value is not None:
                by_seed.setdefault(cell.labels.get("seed", ""), {})[cell.part] = 100 * value
        if not by_seed:
            return []
        common = set.intersection(*(set(splits) for splits in by_seed.values()))
        return [statistics.fmean(splits[split] for split in common) for splits in by_seed.values()] if common else []


def gather(cells: list[Cell], workdir: Path) -> list[Group]:
    """The groups of a study in the order of the grid, with their outcomes so far."""
    groups: dict[tuple[str, ...], list[tuple[Cell, Outcome | None]]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append((cell, outcome_of(cell, workdir)))
    return [
        Group(
            labels=labels,
            cells=tuple(cell for cell, _ in members),
            outcomes=tuple((c, o) for c, o in members if o is not None and o.status == "done"),
            failed=sum(o is not None and o.status == "failed" for _, o in members),
            waiting=sum(o is None or o.status == "stopped" for _, o in members),
        )
        for labels, members in groups.items()
    ]
