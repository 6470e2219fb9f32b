"""The pictures of a report: curves by matplotlib, the confusion matrix and bars as hand-written SVG and HTML.

Matrix and bars are written by hand because they carry class names, which stay text that can be searched and selected in
any script, and because every cell of the matrix can have a tooltip.
"""

import base64
import functools
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from r23d_jax.runtime.progress import printable

P = ParamSpec("P")
R = TypeVar("R")

# Okabe and Ito's palette, which is distinguishable with every common kind of color blindness.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#8A929C"
TEXT, GRID = "#1F2933", "#E4E7EB"
# matplotlib's settings
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.5,
    "axes.edgecolor": GRAY,
    "axes.labelcolor": TEXT,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "svg.fonttype": "path",
    "svg.hashsalt": "r23d_jax",  # the same data gives the same file
}
SMOOTHING_POINTS = 25  # the bold loss curve is a running mean over about 1/25 of the run
MAX_LABELED_CLASSES = 150  # a larger matrix has too little space for names beside it

Row = Mapping[str, float | None]


def escape(text: object) -> str:
    """Text escaped for HTML and SVG, also inside a quoted attribute."""
    return html.escape(printable(text, lines=True), quote=True)


# -- curves ------------------------------------------------------------------------------------------------------------


def curves(rows: Sequence[Row]) -> str:
    """Loss, accuracies, learning rate and speed against epochs, as an `<img>` that holds its SVG; "" without data."""
    panels = [
        panel
        for panel in (
            ("Loss", "cross-entropy", {"train/loss": "train", "val/loss": "validation, per clip"}),
            ("Validation accuracy", "%", {"val/top1_video": "video top-1", "val/top1_clip": "clip top-1"}),
            ("Learning rate", "", {"train/learning_rate": ""}),
            ("Training speed", "clips/s", {"train/clips_per_second": ""}),
        )
        if any(_series(rows, name)[0].size for name in panel[2])
    ]
    if not panels:
        return ""
    import matplotlib  # imported here, so that commands that draw nothing do not wait for it

    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(5.68 * columns, 3.0 * lines)
        axes = np.atleast_1d(figure.subplots(lines, columns)).reshape(-1)
        for axis, (title, unit, names) in zip(axes, panels, strict=False):
            _draw_panel(axis, rows, title, unit, names)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        content = svg_of(figure)
    summary = "curves against epochs: " + ", ".join(title.lower() for title, _, _ in panels)
    return image(content, "image/svg+xml", summary)


def plain_text(draw: Callable[P, R]) -> Callable[P, R]:
    """Makes a function draw all text as it is: a class with dollars is no formula."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context({"text.parse_math": False}):
            return draw(*args, **options)

    return drawn


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of so many inches that is no part of pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg_of(figure: Any, **options: Any) -> bytes:
    """A matplotlib figure as SVG without a date; `options` go to `savefig`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, **options)
    return buffer.getvalue()


def _draw_panel(axis, rows: Sequence[Row], title: str, unit: str, names: Mapping[str, str]) -> None:
    scale = 100.0 if unit == "%" else 1.0
    for color, (name, label) in zip((BLUE, ORANGE), names.items(), strict=False):
        epochs, values = _series(rows, name)
        values = values * scale
        if not len(epochs):
            continue
        if name.startswith("val/"):
            axis.plot(epochs, values, color=color, linewidth=1.6, marker="o", markersize=3.5, label=label)
        elif name == "train/loss" and len(values) >= 2 * SMOOTHING_POINTS:
            axis.plot(epochs, values, color=color, linewidth=0.6, alpha=0.3)
            axis.plot(epochs, _running_mean(values), color=color, linewidth=1.6, label=label)
        else:
            axis.plot(epochs, values, color=color, linewidth=1.4, label=label)
    axis.set_title(title, loc="left")
    axis.set_xlabel("epoch")
    axis.set_ylabel(unit)
    if unit == "%":
        axis.set_ylim(0, 102)
    elif title in ("Learning rate", "Training speed"):
        axis.set_ylim(bottom=0)
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if any(names.values()):
        axis.legend(frameon=False)


def _series(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["epoch"], row[name]) for row in rows if _is_number(row.get(name)) and _is_number(row.get("epoch"))]
    epochs, values = np.array(points, float).reshape(-1, 2).T
    return epochs, values


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Centered mean over a 25th of the points, over fewer near the ends."""
    window = np.ones(2 * max(1, len(values) // SMOOTHING_POINTS // 2) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


# -- confusion matrix and bars -----------------------------------------------------------------------------------------


def confusion_svg(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """The matrix as inline SVG: blue on the diagonal, orange off it, darker for a larger share of the row.

    Only cells with a count are drawn, and each has a tooltip. Wrong ones name their classes in `data-pair`. Shares are
    shown on a square-root scale, because single confusions among many classes would be invisible on a linear one.
    """
    count = len(class_names)
    labeled = count <= MAX_LABELED_CLASSES
    cell = min(56.0, 950.0 / count) if labeled else max(2.0, 1000.0 / count)
    font = min(13.0, cell * 0.92)
    longest = max((len(name) for name in class_names), default=0)
    margin = min(240.0, 12 + longest * font * 0.58) if labeled else 12.0
    top = margin * 0.92 + 6 if labeled else 12.0
    side = cell * count
    width, height = margin + side + (margin * 0.6 if labeled else 12), top + side + 12
    totals = confusion.sum(axis=1)
    parts = [
        f'<svg class="matrix" viewBox="0 0 {width:.1f} {height:.1f}" role="img" style="max-width:{width:.0f}px" '
        f'aria-label="confusion matrix, true class by predicted class">',
        f'<rect x="{margin:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}" fill="#fff" stroke="{GRID}"/>',
    ]
    step = 1 if count <= 30 else 5
    for k in range(step, count, step):
        at = k * cell
        parts.append(
            f'<path d="M{margin + at:.1f} {top:.1f}v{side:.1f}M{margin:.1f} {top + at:.1f}h{side:.1f}" '
            f'stroke="{GRID}" stroke-width="0.6"/>'
        )
    for row, column in np.argwhere(confusion > 0).tolist():
        number, total = int(confusion[row, column]), int(totals[row])
        share = number / total
        color = BLUE if row == column else ORANGE
        x, y = margin + column * cell, top + row * cell
        tip = f"true {class_names[row]}, predicted {class_names[column]}: {number} of {total} ({100 * share:.0f} %)"
        pair = "" if row == column else f' data-pair="{row} {column}"'
        parts.append(
            f'<rect{pair} x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}" fill="{color}" '
            f'fill-opacity="{0.08 + 0.92 * math.sqrt(share):.3f}"><title>{escape(tip)}</title></rect>'
        )
        if cell >= 26:
            ink = "#fff" if share > 0.2 else TEXT
            parts.append(
                f'<text x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}" font-size="12" style="fill:{ink}" '
                f'text-anchor="middle" pointer-events="none">{number}</text>'
            )
    if labeled:
        for k, name in enumerate(class_names):
            middle = (k + 0.5) * cell
            shown = escape(_shortened(name, round((margin - 12) / (font * 0.58))))
            parts.append(
                f'<text x="{margin - 6:.1f}" y="{top + middle + font * 0.35:.1f}" font-size="{font:.1f}" '
                f'text-anchor="end">{shown}</text>'
                f'<text transform="translate({margin + middle + font * 0.2:.1f} {top - 6:.1f}) rotate(-60)" '
                f'font-size="{font:.1f}">{shown}</text>'
            )
    return "".join(parts) + "</svg>"


def confused_pairs(confusion: np.ndarray, most: int = 15) -> list[tuple[int, int, int, float]]:
    """(true class, predicted class, number of videos, share of the true class), the most frequent first."""
    totals = confusion.sum(axis=1)
    pairs = [
        (row, column, int(confusion[row, column]), float(confusion[row, column] / totals[row]))
        for row, column in np.argwhere(confusion > 0).tolist()
        if row != column
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], -pair[3], pair[0], pair[1]))[:most]


def accuracy_bars(per_class: np.ndarray, totals: np.ndarray, class_names: Sequence[str]) -> str:
    """One bar per class that has videos, the best first, as HTML; columns fill the width of the page."""
    known = [k for k in range(len(class_names)) if not math.isnan(per_class[k])]
    known.sort(key=lambda k: (-per_class[k], class_names[k]))
    bars = []
    for k in known:
        share = 100 * float(per_class[k])
        bars.append(
            f'<div class="bar" title="{escape(class_names[k])}: {share:.1f} % of {int(totals[k])} videos">'
            f'<span class="name">{escape(class_names[k])}</span>'
            f'<span class="track"><span class="fill" style="width:{share:.1f}%"></span></span>'
            f'<span class="value">{share:.1f}</span></div>'
        )
    kind = "bars few" if len(known) <= 12 else "bars"
    return f'<div class="{kind}">{"".join(bars)}</div>'


def image(content: bytes, kind: str, alt: str) -> str:
    """An `<img>` with its content inside."""
    return f'<img alt="{escape(alt)}" src="data:{kind};base64,{base64.b64encode(content).decode()}">'


def _shortened(name: str, most: int) -> str:
    return name if len(name) <= max(most, 4) else name[: max(most, 4) - 1] + "…"
