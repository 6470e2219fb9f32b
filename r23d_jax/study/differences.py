"""Accuracies of a study's rows with intervals, and the paired difference of every two rows that share videos."""

import collections
import csv
import dataclasses
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from r23d_jax.config import UserError
from r23d_jax.data.find.video_names import group_of
from r23d_jax.data.sources import listed_videos, lists_of
from r23d_jax.evaluation.bootstrap import Interval, interval
from r23d_jax.evaluation.result import load_evaluation
from r23d_jax.study.grid import Cell


@dataclasses.dataclass(frozen=True)
class Row:
    """The videos that all repetitions of a row have scored."""

    # (split and fold, recording, class/video) -> percent of the seeds that were right
    scores: Mapping[tuple[str, str, str], float]
    # whether every video has a group, by its name or by the lists; one without is a recording of its own
    named_groups: bool = True
    # name of a cell -> its split and fold, and the videos that it has scored
    videos: Mapping[str, tuple[str, frozenset[str]]] = dataclasses.field(default_factory=dict)

    @property
    def accuracy(self) -> Interval | None:
        """The mean over splits of the percent of right videos; None without videos."""
        return _interval(self.scores)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two rows, by their places in the study, and the first minus the second on the videos they share, in points."""

    first: int
    second: int
    difference: Interval


def read_row(cells: Sequence[Cell], workdir: Path) -> Row:
    """The scores of the finished cells of one row; raises UserError, naming the file, if an evaluation is damaged."""
    found: dict[tuple[str, str, str], list[bool]] = {}
    videos: dict[str, tuple[str, frozenset[str]]] = {}
    named, parts = True, _common_parts(cells)
    for cell in cells:
        result = load_evaluation(workdir / cell.name) if cell.part in parts else None
        if result is None:
            continue
        right, listed, scored = result.predictions == result.labels, _listed_groups(cell), []
        for k in np.flatnonzero(result.evaluated).tolist():
            class_name, name = result.class_names[result.labels[k]], str(result.names[k])
            video, group = f"{class_name}/{name}", group_of(name)  # files of two classes may have one name
            named = named and (video in listed or group is not None)
            recording = listed.get(video) or f"{class_name}/{group or name}"
            found.setdefault((cell.part, recording, video), []).append(bool(right[k]))
            scored.append(video)
        videos[cell.name] = cell.part, frozenset(scored)
    return Row({key: 100 * sum(values) / len(values) for key, values in found.items()}, named, videos)


def _listed_groups(cell: Cell) -> dict[str, str]:
    """The groups of class/video that the lists name, e.g. in a column; a person may be in several classes."""
    data = cell.config.data
    try:
        lists = lists_of(data)
        entries = listed_videos(data, lists, "test").entries if lists.is_dir() else ()
    except UserError:  # lists that have changed; the names tell the groups then
        return {}
    return {
        f"{entry.class_name}/{entry.name}": entry.group
        for entry in entries
        if group_of(entry.name) is None and _last(entry.group) != _last(entry.name)  # which is the video's own path
    }


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _common_parts(cells: Sequence[Cell]) -> set[str]:
    """The splits and folds that all seeds have."""
    by_seed: dict[str, set[str]] = {}
    for cell in cells:
        by_seed.setdefault(cell.labels.get("seed", ""), set()).add(cell.part)
    return set.intersection(*by_seed.values()) if by_seed else set()


def usual_videos(rows: Sequence[Row]) -> dict[str, frozenset[str]]:
    """Split and fold -> the videos that most rows were scored on; of two sets of as many rows, the larger one."""
    counts: dict[str, collections.Counter[frozenset[str]]] = {}
    for row in rows:
        for part, videos in dict.fromkeys(row.videos.values()):
            counts.setdefault(part, collections.Counter())[videos] += 1
    return {part: max(counted.items(), key=lambda item: (item[1], len(item[0])))[0] for part, counted in counts.items()}


def compare(rows: Sequence[Row]) -> list[Pair]:
    """Every two rows that share videos."""
    pairs = []
    for first, second in itertools.combinations(range(len(rows)), 2):
        other = {(part, video): score for (part, _, video), score in rows[second].scores.items()}
        difference = _interval(
            {
                (part, recording, video): score - other[part, video]
                for (part, recording, video), score in rows[first].scores.items()
                if (part, video) in other
            }
        )
        if difference is not None:
            pairs.append(Pair(first, second, difference))
    return pairs


def _interval(scores: Mapping[tuple[str, str, str], float]) -> Interval | None:
    if not scores:
        return None
    parts, recordings, _ = zip(*scores, strict=True)
    part, recording = (np.unique(np.array(names), return_inverse=True)[1] for names in (parts, recordings))
    return interval(np.fromiter(scores.values(), np.float64), part, recording)


# -- in words ----------------------------------------------------------------------------------------------------------


def ends(found: Interval) -> str:
    """The interval, e.g. `[-1.20, 3.40]`."""
    return f"[{found.low:.2f}, {found.high:.2f}]"


def verdict(found: Interval) -> str:
    """Whether the interval of a difference holds zero, in words."""
    return "no difference shown" if found.holds_zero else "higher" if found.mean > 0 else "lower"


def line(pair: Pair, names: Sequence[str], unit: str) -> str:
    """One printed line, e.g. `A - B: +1.10 points [-1.20, 3.40], 310 videos of 105 recordings: no difference shown`."""
    d = pair.difference
    sizes = f"{d.videos:,} videos of {d.groups:,} {unit}"
    return f"{names[pair.first]} - {names[pair.second]}: {d.mean:+.2f} points {ends(d)}, {sizes}: {verdict(d)}"


def table(pairs: Sequence[Pair], names: Sequence[str]) -> str:
    """All pairs as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["first", "second", "first minus second", "low", "high", "videos", "groups", "verdict"])
    for pair in pairs:
        d = pair.difference
        numbers = [f"{value:.4f}" for value in (d.mean, d.low, d.high)]
        writer.writerow([names[pair.first], names[pair.second], *numbers, d.videos, d.groups, verdict(d)])
    return text.getvalue()
