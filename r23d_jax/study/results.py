"""The tables and pictures of a study, from the files in the folders of its cells."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from r23d_jax.evaluation.figures import svg_of
from r23d_jax.runtime.disk import write_atomically
from r23d_jax.runtime.progress import format_seconds, markdown, printable
from r23d_jax.study import differences, pictures
from r23d_jax.study.costs import gpu_hours
from r23d_jax.study.differences import Pair, Row
from r23d_jax.study.grid import REPETITIONS, Cell, Study
from r23d_jax.study.groups import Group, gather
from r23d_jax.study.run import Outcome, outcome_of

MARKDOWN, TABLE, PAIRS = "results.md", "results.csv", "differences.csv"
USUAL = "test videos, checkpoint last"
MOST_LISTED = 10  # pairs in a list; more are a matrix
METRICS = ("val/top1_video", "val/top5_video", "val/mean_class", "val/top1_clip")


def write_results(
    study: Study, cells: list[Cell], workdir: Path, log: Callable[[str], None] = lambda line: None
) -> Path:
    """Writes `results.csv`, `differences.csv`, `results.md` and its pictures; returns the path of the page.

    Args:
      cells: all its cells, done or not.
      log: takes a line for every two rows that share videos.

    Raises:
      UserError: if an evaluation of a finished cell is damaged; the message names it.
    """
    groups = gather(cells, workdir)
    rows = [differences.read_row([cell for cell, _ in group.outcomes], workdir) for group in groups]
    pairs, names = differences.compare(rows), [group.name for group in groups]
    write_atomically(workdir / TABLE, _csv(cells, workdir))
    write_atomically(workdir / PAIRS, differences.table(pairs, [_cell(name) for name in names]))
    if pairs:
        log(f"{_measure(groups)}, paired differences with 95 % intervals over {_unit(rows)}:")
    for pair in pairs:
        log(f"  {differences.line(pair, names, _unit(rows))}")
    drawn = _pictures(groups, rows, pairs, workdir)
    write_atomically(workdir / MARKDOWN, _page(study, cells, groups, rows, pairs, drawn))
    return workdir / MARKDOWN


def _unit(rows: Sequence[Row]) -> str:
    return "recordings" if all(row.named_groups for row in rows) else "recordings (a video each, where names hold none)"


def _measure(groups: Sequence[Group]) -> str:
    """The main figure, with the videos it is measured on and the checkpoint, where these are not the usual ones."""
    kinds = {_kind(outcome) for group in groups for _, outcome in group.outcomes}
    return "video top-1" + (f" ({' or '.join(sorted(kinds))})" if kinds - {USUAL} else "")


def _kind(outcome: Outcome) -> str:
    """The videos that a cell was measured on, and the checkpoint."""
    videos = "held-out groups" if outcome.protocol.get("fold") else "test videos"
    return f"{videos}, checkpoint {outcome.protocol.get('chosen') or 'last'}"


# -- tables ------------------------------------------------------------------------------------------------------------


def _csv(cells: list[Cell], workdir: Path) -> str:
    axes = list(cells[0].labels)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*map(_cell, axes), "status", *METRICS, "parameters", "gmacs", "seconds", "device", "protocol", "videos"]
    )
    for cell in cells:
        outcome = outcome_of(cell, workdir)
        if outcome is None:
            writer.writerow([*map(_cell, cell.labels.values()), "waiting", *[""] * (len(METRICS) + 6)])
            continue
        values = [outcome.metrics.get(name, "") for name in METRICS]
        rest = [outcome.parameters, round(outcome.gmacs, 6), round(outcome.seconds, 1), _cell(outcome.device)]
        rest.append(_kind(outcome) if outcome.status == "done" else "")
        rest.append("" if outcome.videos is None else outcome.videos)
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


def _page(
    study: Study,
    cells: list[Cell],
    groups: list[Group],
    rows: list[Row],
    pairs: list[Pair],
    drawn: list[tuple[str, str]],
) -> str:
    axes = [axis for axis in study.axes if axis not in REPETITIONS]
    repeated = [f"{len(study.axes[axis])} {axis}s" for axis in REPETITIONS if axis in study.axes]
    done = sum(len(group.outcomes) for group in groups)
    failed, waiting = sum(group.failed for group in groups), sum(group.waiting for group in groups)
    devices = sorted({outcome.device for group in groups for _, outcome in group.outcomes})
    state = f"{done} of {len(cells)} trainings are done"
    state += f", {failed} failed" if failed else ""
    state += f", {waiting} have not run" if waiting else ""
    over = " and ".join(repeated) or "one run"
    over = f"what is done of {over}" if repeated and done < len(cells) else over
    measure = _measure(groups)
    columns = [*axes, *study.facts, measure, "95 % interval", "mean class", "clip top-1", "runs", "parameters", "GMACs"]
    columns += ["time", *(["GPU hours"] if study.facts else [])]
    text = len(axes) + len(study.facts)
    others = _on_other_videos(groups, rows)
    lines = [
        f"# {markdown(study.title)}",
        "",
        f"{state}.",
        f"Accuracies in percent: mean over {over}, ± standard deviation over seeds.",
        *(["**Held-out groups are groups of the training list, not test videos.**"] * ("held-out" in measure)),
        f"The intervals are percentiles of 10,000 resamples of {_unit(rows)}, seeds averaged first: other recordings, "
        "the same trained networks.",
        *([f"Hardware: {markdown('; '.join(devices))}."] if devices else []),
        "",
        f"| {' | '.join(map(markdown, columns))} |",
        "|" + "---|" * text + "---:|" * (len(columns) - text),
    ]
    for group, row in zip(groups, rows, strict=True):
        facts = [next((c[label] for label in group.labels if label in c), "") for c in study.facts.values()]
        labels = _marked(group, others)
        if " or " in measure and group.outcomes and labels:
            labels[-1] += f" ({_kind(group.outcomes[0][1])})"
        shown = [*map(markdown, [*labels, *facts]), *_cells_of_row(group, row)]
        lines.append("| " + " | ".join([*shown, *([_gpu_hours(group)] if study.facts else [])]) + " |")
    if others:
        told = "; ".join(f"{markdown(', '.join(labels)) or 'a run'} on {text}" for labels, text in others.items())
        told += ". Two rows are compared on the videos that both have."
        lines += ["", f"\\* Scored on other videos than the rest: {told}"]
    if study.facts:
        lines += [
            "",
            "GPU hours: all runs of the row; measured, or estimated (~) from the measured speed of an H200 (of "
            "R(2+1)D for I3D).",
        ]
    lines += ["", study.notes] if study.notes else []
    needs = dict.fromkeys(text for cell in cells for text in cell.needs.values())
    lines += ["", *(f"- needs {markdown(text)}" for text in needs)] if needs else []
    lines += _differences(groups, pairs, measure)
    splits = _by_split(study, groups, axes, others)
    lines += ["", f"{measure[:1].upper()}{measure[1:]}:", "", *splits] if splits else []
    for title, name in drawn:
        lines += ["", f"![{title}]({name})"]
    failures = [group for group in groups if group.failed]
    if failures:
        lines += [
            "",
            "Failed: " + ", ".join(f"{markdown(' / '.join(group.labels))} ({group.failed})" for group in failures),
        ]
    return "\n".join(lines) + "\n"


def _on_other_videos(groups: list[Group], rows: list[Row]) -> dict[tuple[str, ...], str]:
    """Labels of a row that was scored on other videos than the rest -> on which, in words."""
    usual, found = differences.usual_videos(rows), {}
    for group, row in zip(groups, rows, strict=True):
        scored = [(outcome, *row.videos[cell.name]) for cell, outcome in group.outcomes if cell.name in row.videos]
        texts = [_in_words(outcome, own, usual[part]) for outcome, part, own in scored if own != usual[part]]
        if texts:
            found[group.labels] = ", ".join(dict.fromkeys(texts))
    return found


def _in_words(outcome: Outcome, scored: frozenset[str], usual: frozenset[str]) -> str:
    """E.g. `10 videos instead of 40 (25 missing, 5 not readable)`."""
    text = f"{len(scored):,} videos instead of {len(usual):,}"
    if len(scored) == len(usual):
        text = f"{len(scored):,} videos, {len(scored - usual):,} of them others"
    counts = {"missing": outcome.missing, "not readable": outcome.not_evaluated}
    counts["trained on"] = outcome.protocol.get("trained_on", 0)
    why = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    return f"{text} ({why})" if why else text


def _marked(group: Group, others: Mapping[tuple[str, ...], str]) -> list[str]:
    """The labels of a row, with a mark if it is among those that were scored on other videos."""
    return [*group.labels[:-1], *(f"{label} *" if group.labels in others else label for label in group.labels[-1:])]


def _gpu_hours(group: Group) -> str:
    """Hours of all runs: measured if they ran on a GPU, else estimated."""
    if group.outcomes and not any("cpu" in outcome.device.lower() for _, outcome in group.outcomes):
        return f"{len(group.cells) * statistics.fmean(outcome.seconds for _, outcome in group.outcomes) / 3600:.2f}"
    hours = [gpu_hours(cell) for cell in group.cells]
    total = sum(hour or 0 for hour in hours)
    return "" if None in hours or not total else f"~{total:,.0f}" if total >= 10 else f"~{total:.2g}"


def _differences(groups: list[Group], pairs: list[Pair], measure: str) -> list[str]:
    """Every two rows that share videos: as a list, or, if they are many, as a matrix."""
    if not pairs:
        return []
    lines = [
        "",
        "## Differences",
        "",
        f"In points of {measure}, paired by video, with 95 % intervals over recordings.",
    ]
    if len(pairs) <= MOST_LISTED:
        lines += ["", "| row | minus | difference | 95 % interval | |", "|---|---|---:|---:|---|"]
        for pair in pairs:
            names, d = (markdown(groups[k].name) for k in (pair.first, pair.second)), pair.difference
            lines.append(f"| {' | '.join(names)} | {d.mean:+.2f} | {differences.ends(d)} | {differences.verdict(d)} |")
        return [*lines, ""]
    shown = sorted({k for pair in pairs for k in (pair.first, pair.second)})
    lines += [
        f"The row minus the column; in parentheses where the interval holds zero: no difference shown. {PAIRS} has the "
        "intervals. They are not corrected for the number of pairs.",
        "",
        f"| | row | {' | '.join(str(k + 1) for k in shown)} |",
        "|---:|---|" + "---:|" * len(shown),
    ]
    texts: dict[tuple[int, int], str] = {}
    for pair in pairs:
        for key, mean in (
            ((pair.first, pair.second), pair.difference.mean),
            ((pair.second, pair.first), pair.difference.negated.mean),
        ):
            texts[key] = f"({mean:+.1f})" if pair.difference.holds_zero else f"{mean:+.1f}"
    for k in shown:
        lines.append(
            f"| {k + 1} | {markdown(groups[k].name)} | {' | '.join(texts.get((k, other), '') for other in shown)} |"
        )
    return [*lines, ""]


def _cells_of_row(group: Group, row: Row) -> list[str]:
    if not group.outcomes:
        missing = ", ".join(group.cells[0].needs)
        return ["failed" if group.failed else f"needs {missing}" if missing else "", "", "", "", "0", "", "", ""]
    first = group.outcomes[0][1]
    scores = [_mean_and_deviation(group.values(name)) for name in ("val/top1_video", "val/mean_class", "val/top1_clip")]
    scores.insert(1, differences.ends(row.accuracy) if row.accuracy else "")
    seconds = statistics.fmean(outcome.seconds for _, outcome in group.outcomes)
    return [*scores, str(len(group.outcomes)), f"{first.parameters:,}", f"{first.gmacs:.3f}", format_seconds(seconds)]


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"


def _by_split(study: Study, groups: list[Group], axes: list[str], others: Mapping[tuple[str, ...], str]) -> list[str]:
    """Video top-1 of every split (or fold) and their mean, where they are an axis."""
    axis = "fold" if len(study.axes.get("fold", ())) > 1 else "split"
    splits = list(study.axes.get(axis, ()))
    if len(splits) < 2:
        return []
    lines = [
        "| " + " | ".join([*map(markdown, [*axes, *(f"{axis} {split}" for split in splits)]), "mean"]) + " |",
        "|" + "---|" * len(axes) + "---:|" * (len(splits) + 1),
    ]
    for group in groups:
        means = []
        for split in splits:
            found = [o.metrics["val/top1_video"] for c, o in group.outcomes if c.labels[axis] == split]
            known = [100 * value for value in found if value is not None]  # None: no video could be read
            means.append(statistics.fmean(known) if known else math.nan)
        shown = ["" if math.isnan(mean) else f"{mean:.2f}" for mean in [*means, statistics.fmean(means)]]
        lines.append("| " + " | ".join([*map(markdown, _marked(group, others)), *shown]) + " |")
    return lines


# -- pictures ----------------------------------------------------------------------------------------------------------


def _pictures(groups: list[Group], rows: list[Row], pairs: list[Pair], workdir: Path) -> list[tuple[str, str]]:
    import matplotlib

    finished = [k for k, group in enumerate(groups) if group.values("val/top1_video")]
    if not finished:
        return []
    done, measure = [groups[k] for k in finished], _measure(groups)
    titles = {"gmacs": "multiply-adds of one clip, billions", "parameters": "parameters, millions"}
    with matplotlib.rc_context({"text.parse_math": False}):  # a label with dollars is no formula
        figures = [
            *(
                (f"Accuracy against {title}", f"accuracy_{f}.svg", pictures.scatter(done, title, f, measure))
                for f, title in titles.items()
            ),
            ("Accuracy by class", "per_class.svg", pictures.heat_map(done)),
        ]
        accuracies = {k: accuracy for k in finished if (accuracy := rows[k].accuracy)}
        if len(accuracies) > 1:
            first = min(accuracies)
            to_first = {pair.second: pair.difference.negated for pair in pairs if pair.first == first}
            names = [groups[k].name for k in accuracies]
            picture = pictures.forest(names, list(accuracies.values()), [to_first.get(k) for k in accuracies], measure)
            figures.insert(0, ("Accuracy with intervals", "intervals.svg", picture))
        for _, name, figure in figures:
            write_atomically(workdir / name, svg_of(figure, bbox_inches="tight"))
    return [(title, name) for title, name, _ in figures]
