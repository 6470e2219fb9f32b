"""The pictures of a study."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from r23d_jax.evaluation.bootstrap import Interval
from r23d_jax.evaluation.figures import BLUE, GRAY, GREEN, ORANGE, new_figure, plain_text
from r23d_jax.runtime.progress import printable
from r23d_jax.study.groups import Group

_COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GRAY)
_MARKERS = "osD^vP*X"


@plain_text
def scatter(groups: list[Group], title: str, field: str, measure: str) -> Any:
    """A figure with one point per group and a bar from the worst seed to the best."""
    figure = new_figure(8.0, 5.2)
    axes = figure.subplots()
    for index, group in enumerate(groups):
        values = group.values("val/top1_video")
        mean = statistics.fmean(values)
        bars = [[max(0.0, mean - min(values))], [max(0.0, max(values) - mean)]]  # the mean of equal values is rounded
        x = getattr(group.outcomes[0][1], field) / (1e6 if field == "parameters" else 1)
        axes.errorbar(
            x,
            mean,
            yerr=bars,
            fmt=_MARKERS[index // len(_COLORS) % len(_MARKERS)],
            color=_COLORS[index % len(_COLORS)],
            markersize=7,
            capsize=3,
            label=printable(", ".join(group.labels)),
        )
    axes.set_xlabel(title)
    axes.set_ylabel(f"{measure}, % (bars: worst to best seed)")
    axes.set_ylim(0, 103)
    axes.grid(alpha=0.3)
    if groups[0].labels:  # a study of seeds alone has one row without a label
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


@plain_text
def forest(
    names: Sequence[str], accuracies: Sequence[Interval], differences: Sequence[Interval | None], measure: str
) -> Any:
    """A figure of every row's accuracy with its interval, and of its paired difference to the first row."""
    figure = new_figure(10.0, 1.5 + 0.34 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    for y, (accuracy, difference) in enumerate(zip(accuracies, differences, strict=True)):
        _bar(left, accuracy, y, BLUE)
        if difference is not None:
            _bar(right, difference, y, GRAY if difference.holds_zero else ORANGE)
    right.axvline(0, color=GRAY, linewidth=1)
    left.set_yticks(range(len(names)), [printable(name) for name in names], fontsize=8.5)
    left.set_ylim(len(names) - 0.5, -0.5)  # the first row on top
    left.set_xlabel(f"{measure}, % (bars: 95 % intervals)", fontsize=9)
    right.set_xlabel("minus the first row, points\n(gray: no difference shown)", fontsize=9)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5)
    return figure


def _bar(axes: Any, found: Interval, y: int, color: str) -> None:
    axes.plot([found.low, found.high], [y, y], color=color, linewidth=2, solid_capstyle="butt")
    axes.plot(found.mean, y, "s", color=color, markersize=6)


@plain_text
def heat_map(groups: list[Group]) -> Any:
    """A figure of the accuracy of every class, averaged over repetitions."""
    names = list(groups[0].outcomes[0][1].per_class)
    rows = []
    for group in groups:
        found = np.array([[outcome.per_class.get(name) for name in names] for _, outcome in group.outcomes], float)
        rows.append(100 * np.ma.masked_invalid(found).mean(0).filled(np.nan))
    labels = [printable(", ".join(group.labels)) for group in groups]
    figure = new_figure(2.5 + 0.28 * max(len(names), 8), 1.6 + 0.34 * len(groups))
    axes = figure.subplots()
    image = axes.imshow(rows, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(names)), [printable(name) for name in names], rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    if len(names) <= 12:
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color="w" if value < 60 else "k")
    figure.colorbar(image, ax=axes, label="accuracy of the class, %")
    return figure
