"""The tables and pictures of a study, from the files in the folders of its cells."""

import csv
import dataclasses
import io
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r23d_jax.evaluation.figures import BLUE, GRAY, GREEN, ORANGE, new_figure, svg_of
from r23d_jax.runtime.disk import write_atomically
from r23d_jax.runtime.progress import format_seconds, printable
from r23d_jax.study.grid import REPETITIONS, Cell, Study
from r23d_jax.study.run import Outcome, read_outcome

MARKDOWN, TABLE = "results.md", "results.csv"
METRICS = ("val/top1_video", "val/top5_video", "val/mean_class", "val/top1_clip")


@dataclasses.dataclass(frozen=True)
class Group:
    """The repetitions of one combination of the compared axes.

    Attributes:
      labels: labels of the compared axes.
      outcomes: the finished cells and their outcomes.
      failed: number of failed cells.
      waiting: number of cells that have not run.
    """

    labels: tuple[str, ...]
    outcomes: tuple[tuple[Cell, Outcome], ...]
    failed: int
    waiting: int

    def values(self, metric: str) -> list[float]:
        """Percent, one per seed: the mean over the splits that all seeds have."""
        by_seed: dict[str, dict[str, float]] = {}
        for cell, outcome in self.outcomes:
            value = outcome.metrics.get(metric)
            if value is not None:
                by_seed.setdefault(cell.labels.get("seed", ""), {})[cell.labels.get("split", "")] = 100 * value
        if not by_seed:
            return []
        common = set.intersection(*(set(splits) for splits in by_seed.values()))
        return [statistics.fmean(splits[split] for split in common) for splits in by_seed.values()] if common else []


def gather(cells: list[Cell], workdir: Path) -> list[Group]:
    """The groups of a study in the order of the grid, with their outcomes so far."""
    groups: dict[tuple[str, ...], list[tuple[Cell, Outcome | None]]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append((cell, read_outcome(workdir / cell.name)))
    return [
        Group(
            labels=labels,
            outcomes=tuple((c, o) for c, o in members if o is not None and o.status == "done"),
            failed=sum(o is not None and o.status == "failed" for _, o in members),
            waiting=sum(o is None for _, o in members),
        )
        for labels, members in groups.items()
    ]


def write_results(study: Study, cells: list[Cell], workdir: Path) -> Path:
    """Writes `results.csv`, `results.md` and its pictures; returns the path of the page."""
    groups = gather(cells, workdir)
    write_atomically(workdir / TABLE, _csv(cells, workdir))
    pictures = _pictures(study, groups, workdir)
    write_atomically(workdir / MARKDOWN, _page(study, cells, groups, pictures))
    return workdir / MARKDOWN


# -- tables ------------------------------------------------------------------------------------------------------------


def _csv(cells: list[Cell], workdir: Path) -> str:
    axes = list(cells[0].labels)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*map(_cell, axes), "status", *METRICS, "parameters", "gmacs", "seconds", "device"])
    for cell in cells:
        outcome = read_outcome(workdir / cell.name)
        if outcome is None:
            writer.writerow([*map(_cell, cell.labels.values()), "waiting", *[""] * (len(METRICS) + 4)])
            continue
        values = [outcome.metrics.get(name, "") for name in METRICS]
        rest = [outcome.parameters, round(outcome.gmacs, 6), round(outcome.seconds, 1), _cell(outcome.device)]
        writer.writerow([*map(_cell, cell.labels.values()), outcome.status, *values, *rest])
    return text.getvalue()


def _cell(text: str) -> str:
    """Text as a cell that a spreadsheet does not run as a formula; a number stays a number."""
    text = printable(text)
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return text


def _markdown(text: str) -> str:
    """Text escaped for a line or a table of Markdown."""
    return re.sub(r"([\\`*<>\[\]|&])", r"\\\1", printable(text))


def _page(study: Study, cells: list[Cell], groups: list[Group], pictures: list[tuple[str, str]]) -> str:
    axes = [axis for axis in study.axes if axis not in REPETITIONS]
    repeated = [f"{len(study.axes[axis])} {axis}s" for axis in REPETITIONS if axis in study.axes]
    done = sum(len(group.outcomes) for group in groups)
    failed, waiting = sum(group.failed for group in groups), sum(group.waiting for group in groups)
    devices = sorted({outcome.device for group in groups for _, outcome in group.outcomes})
    state = f"{done} of {len(cells)} trainings are done"
    state += f", {failed} failed" if failed else ""
    state += f", {waiting} have not run" if waiting else ""
    columns = [*axes, "video top-1", "mean class", "clip top-1", "runs", "parameters", "GMACs", "time"]
    lines = [
        f"# {_markdown(study.title)}",
        "",
        f"{state}.",
        f"Accuracies in percent: mean over {' and '.join(repeated) or 'one run'}, ± standard deviation over seeds.",
        *([f"Hardware: {_markdown('; '.join(devices))}."] if devices else []),
        "",
        f"| {' | '.join(map(_markdown, columns))} |",
        "|" + "---|" * len(axes) + "---:|" * 7,
    ]
    for group in groups:
        lines.append("| " + " | ".join([*map(_markdown, group.labels), *_cells_of_row(group)]) + " |")
    splits = _by_split(study, groups, axes)
    lines += ["", *splits] if splits else []
    for title, name in pictures:
        lines += ["", f"![{title}]({name})"]
    failures = [group for group in groups if group.failed]
    if failures:
        lines += [
            "",
            "Failed: " + ", ".join(f"{_markdown(' / '.join(group.labels))} ({group.failed})" for group in failures),
        ]
    return "\n".join(lines) + "\n"


def _cells_of_row(group: Group) -> list[str]:
    if not group.outcomes:
        return ["failed" if group.failed else "", "", "", "0", "", "", ""]
    first = group.outcomes[0][1]
    scores = [_mean_and_deviation(group.values(name)) for name in ("val/top1_video", "val/mean_class", "val/top1_clip")]
    seconds = statistics.fmean(outcome.seconds for _, outcome in group.outcomes)
    return [*scores, str(len(group.outcomes)), f"{first.parameters:,}", f"{first.gmacs:.3f}", format_seconds(seconds)]


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"


def _by_split(study: Study, groups: list[Group], axes: list[str]) -> list[str]:
    """Video top-1 of every split and their mean, where splits are an axis."""
    splits = list(study.axes.get("split", ()))
    if len(splits) < 2:
        return []
    lines = [
        "| " + " | ".join([*map(_markdown, [*axes, *(f"split {split}" for split in splits)]), "mean"]) + " |",
        "|" + "---|" * len(axes) + "---:|" * (len(splits) + 1),
    ]
    for group in groups:
        means = []
        for split in splits:
            found = [100 * o.metrics["val/top1_video"] for c, o in group.outcomes if c.labels["split"] == split]
            means.append(statistics.fmean(found) if found else math.nan)
        shown = ["" if math.isnan(mean) else f"{mean:.2f}" for mean in [*means, statistics.fmean(means)]]
        lines.append("| " + " | ".join([*map(_markdown, group.labels), *shown]) + " |")
    return lines


# -- pictures ----------------------------------------------------------------------------------------------------------

_COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GRAY)
_MARKERS = "osD^vP*X"


def _pictures(study: Study, groups: list[Group], workdir: Path) -> list[tuple[str, str]]:
    import matplotlib

    finished = [group for group in groups if group.values("val/top1_video")]
    if not finished:
        return []
    titles = {"gmacs": "multiply-adds of one clip, billions", "parameters": "parameters, millions"}
    with matplotlib.rc_context({"text.parse_math": False}):  # a label with dollars is no formula
        figures = [
            *((f"Accuracy against {titles[f]}", f"accuracy_{f}.svg", _scatter(finished, titles[f], f)) for f in titles),
            ("Accuracy by class", "per_class.svg", _heat_map(finished)),
        ]
        for _, name, figure in figures:
            write_atomically(workdir / name, svg_of(figure, bbox_inches="tight"))
    return [(title, name) for title, name, _ in figures]


def _scatter(groups: list[Group], title: str, field: str) -> Any:
    """A figure with one point per group and a bar from the worst seed to the best."""
    figure = new_figure(8.0, 5.2)
    axes = figure.subplots()
    for index, group in enumerate(groups):
        values = group.values("val/top1_video")
        mean = statistics.fmean(values)
        x = getattr(group.outcomes[0][1], field) / (1e6 if field == "parameters" else 1)
        axes.errorbar(
            x,
            mean,
            yerr=[[mean - min(values)], [max(values) - mean]],
            fmt=_MARKERS[index // len(_COLORS) % len(_MARKERS)],
            color=_COLORS[index % len(_COLORS)],
            markersize=7,
            capsize=3,
            label=printable(", ".join(group.labels)),
        )
    axes.set_xlabel(title)
    axes.set_ylabel("video top-1, % (bars: worst to best seed)")
    axes.set_ylim(0, 103)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _heat_map(groups: list[Group]) -> Any:
    """A figure of the accuracy of every class, averaged over repetitions."""
    names = list(groups[0].outcomes[0][1].per_class)
    rows = []
    for group in groups:
        tables = [outcome.per_class for _, outcome in group.outcomes]
        rows.append([_mean([table.get(name) for table in tables]) for name in names])
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


def _mean(values: list[float | None]) -> float:
    found = [100 * value for value in values if value is not None]
    return statistics.fmean(found) if found else math.nan
