"""Pictures of features: a map of all videos, and the videos that are nearest to some."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r23d_jax.config import look_up
from r23d_jax.evaluation.figures import GRAY, GREEN, ORANGE, TEXT, new_figure, plain_text
from r23d_jax.runtime import disk
from r23d_jax.runtime.progress import printable

NEIGHBORS = 5
QUERIES = 8
_MARKERS = "osD^v<>PX*"
_PERPLEXITY = 30.0  # of t-SNE, with at least three times as many videos
_PAD = 1.5  # around the name of a class, in points
_RINGS, _TURNS = 60, 24  # of the places that are tried for it


def _pca(features: np.ndarray) -> np.ndarray:
    centered = features - features.mean(axis=0)
    left, scale, _ = np.linalg.svd(centered, full_matrices=False)
    return left[:, :2] * scale[:2]


def _tsne(features: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    if not np.ptp(features, axis=0).any():  # its start would be 0 / 0, which ends the process
        return np.zeros((len(features), 2), np.float32)
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)


# --map-method -> (N, D) float32 -> (N, 2)
MAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"tsne": _tsne, "pca": _pca}


@plain_text
def write_map(
    path: Path, features: np.ndarray, labels: np.ndarray, classes: Sequence[str], sides: Sequence[str], method: str
) -> None:
    """A map on which videos of similar features are near each other; a color and a sign for each class.

    Training videos are pale, test videos have a rim. The name of a class stands at the median of its videos, or where
    there is room near it, with a line to the median.

    Args:
      path: a .png, .svg or .pdf file.
      features: (N, D) float32.
      labels: (N,) class numbers; -1 is not known.
      sides: "train", "test" or "" for each video.
      method: a key of `MAPS`.
    """
    import matplotlib

    scaled = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    points = look_up(MAPS, method, "--map-method")(scaled.astype(np.float32))
    colors = matplotlib.colormaps["tab10"]
    test = np.array([side == "test" for side in sides])
    figure = new_figure(9.0, 7.5)
    axis = figure.subplots()
    for label in np.unique(labels).tolist():
        color = colors(label % 10) if label >= 0 else GRAY
        sign = _MARKERS[label // 10 % len(_MARKERS)] if label >= 0 else "."
        for rows, alpha, rim in ((labels == label) & ~test, 0.45, "none"), ((labels == label) & test, 1.0, TEXT):
            axis.scatter(
                *points[rows].T, s=30, c=[color], marker=sign, alpha=alpha, edgecolors=rim, linewidths=0.8, zorder=4
            )
    axis.set_xticks([])
    axis.set_yticks([])
    names = []
    for label in np.unique(labels[labels >= 0]).tolist():
        place = tuple(np.median(points[labels == label], axis=0).tolist())
        name = axis.annotate(
            printable(classes[label]),
            place,
            place,
            color=colors(label % 10),
            fontsize=11 if len(classes) <= 20 else 7,
            fontweight="bold",
            ha="center",
            va="center",
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": _PAD},
            arrowprops={"arrowstyle": "-", "color": colors(label % 10), "linewidth": 0.8},
            zorder=5,
        )
        names.append(name)
    words = {"tsne": "t-SNE: only nearness has a meaning", "pca": "first two principal components"}
    rims = "; test videos have a rim" if test.any() and not test.all() else ""
    axis.set_title(f"{len(features):,} videos, {words[method]}{rims}", loc="left", fontsize=10)
    _spread(axis, names)
    with disk.replacing(path) as partial:
        figure.savefig(partial, dpi=120)


def _spread(axis: Any, names: Sequence[Any]) -> None:
    """Moves each name, in order, to the nearest place where it is inside the axes and covers no name before it.

    A name for which there is no such place stays where it is.
    """
    axis.figure.draw_without_rendering()  # places the axes
    shown = [name.get_window_extent() for name in names]
    sizes = np.array([(box.width, box.height) for box in shown]).reshape(-1, 2) + 2 * _PAD * axis.figure.dpi / 72
    centers = np.array([axis.transData.transform(name.xy) for name in names]).reshape(-1, 2)
    frame = axis.get_window_extent()
    # Rings around a place, at steps of half a line, nearest first
    radius = np.repeat(np.arange(_RINGS), _TURNS) * sizes[:, 1].max(initial=0.0) / 2
    angle = np.tile(np.arange(_TURNS) * 2 * np.pi / _TURNS, _RINGS)
    steps = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    for k, name in enumerate(names):
        tried = np.clip(centers[k] + steps, frame.min + sizes[k] / 2, frame.max - sizes[k] / 2)
        apart = np.abs(tried[:, None] - centers[None, :k]) >= (sizes[k] + sizes[None, :k]) / 2
        free = np.flatnonzero(apart.any(axis=2).all(axis=1))
        if len(free):
            centers[k] = tried[free[0]]
        name.set_position(axis.transData.inverted().transform(centers[k]))


def nearest(
    features: np.ndarray, queries: np.ndarray, gallery: np.ndarray, groups: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest videos by cosine: the nearest of each group, without the group of the query itself.

    Args:
      features: (N, D) float32.
      queries: (Q,) rows.
      gallery: (G,) rows among which to look.
      groups: of all N videos; those of one recording are in one group.

    Returns:
      (Q, `NEIGHBORS`) int rows, -1 where there are fewer groups, and (Q, `NEIGHBORS`) cosines.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    found = np.full((len(queries), NEIGHBORS), -1)
    cosines = np.full((len(queries), NEIGHBORS), np.nan)
    for line, query in enumerate(queries.tolist()):
        cosine = unit[gallery] @ unit[query]
        best: dict[str, int] = {}  # of each group, in the order of nearness
        for place in np.argsort(-cosine, kind="stable").tolist():
            group = groups[int(gallery[place])]
            if group != groups[query]:
                best.setdefault(group, place)
            if len(best) == NEIGHBORS:
                break
        places = list(best.values())
        found[line, : len(places)], cosines[line, : len(places)] = gallery[places], cosine[places]
    return found, cosines


def choose_queries(labels: np.ndarray, among: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """At most `QUERIES` rows, of as many classes as possible: of each class the first of its first group, and so on."""
    first: dict[tuple[int, str], int] = {}
    for row in map(int, among):
        first.setdefault((int(labels[row]), groups[row]), row)
    turns: dict[int, int] = {}
    order = []
    for (label, _), row in first.items():
        turns[label] = turns.get(label, -1) + 1
        order.append((turns[label], row))
    return np.array([row for _, row in sorted(order)[:QUERIES]], int)


@plain_text
def write_nearest(
    path: Path,
    features: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    groups: Sequence[str],
    sides: Sequence[str],
    picture: Callable[[int], np.ndarray | None],
) -> None:
    """A row for each of some videos: its middle frame, then those of the nearest videos, framed by right or wrong.

    Test videos are looked up among training videos; without sides, among all others. The videos of one group show one
    recording: only the nearest of each is shown, and none of the group of the video itself.

    Args:
      path: a .png, .svg or .pdf file.
      features, labels, classes, sides: as in `write_map`.
      picture: row -> a frame of the video (H, W, 3) uint8, or None.
    """
    side = np.array(list(sides), dtype=np.str_)
    divided = {"train", "test"} <= set(side.tolist())
    among, gallery = (np.flatnonzero(side == name) if divided else np.arange(len(side)) for name in ("test", "train"))
    queries = choose_queries(labels, among, groups)
    found, cosine = nearest(features, queries, gallery, groups)
    figure = new_figure(2.0 * (1 + found.shape[1]), 1.85 * len(queries))
    axes = figure.subplots(len(queries), 1 + found.shape[1], squeeze=False)

    def name(row: int) -> str:
        text = printable(classes[labels[row]]) if labels[row] >= 0 else ""
        return text if len(text) <= 22 else f"{text[:21]}…"

    for line, query in zip(range(len(queries)), queries.tolist(), strict=True):
        for column, row in enumerate([query, *found[line].tolist()]):
            axis = axes[line, column]
            axis.set_xticks([])
            axis.set_yticks([])
            frame = picture(row) if row >= 0 else None
            if frame is None:
                axis.set_axis_off()
                continue
            axis.imshow(frame)
            known = column and labels[query] >= 0 and labels[row] >= 0
            color = (GREEN if labels[row] == labels[query] else ORANGE) if known else TEXT
            axis.spines[:].set(color=color, linewidth=3 if column else 1)
            about = f"\n{cosine[line, column - 1]:.2f}" if column else ""
            axis.set_title(name(row) + about, fontsize=8.5, color=color, fontweight="normal" if column else "bold")
    with disk.replacing(path) as partial:
        figure.savefig(partial, dpi=100)
