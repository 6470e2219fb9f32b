"""A picture of a timeline: frames of the video above the curves of the classes."""

import io
from pathlib import Path

import numpy as np

from r23d_jax.data.make.video import resize_short_side
from r23d_jax.evaluation.annotate import timed_pictures
from r23d_jax.evaluation.answer import Answer
from r23d_jax.evaluation.figures import BLUE, GRAY, GREEN, GRID, ORANGE, STYLE
from r23d_jax.runtime.disk import write_atomically
from r23d_jax.runtime.progress import format_seconds, printable

CLASSES = 6  # curves at most
FRAMES = 8
_COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")  # the rest is Okabe and Ito's, too
_WIDTH, _LEFT, _RIGHT = 11.4, 0.75, 0.2  # of the picture and its margins, in inches


def draw_timeline(video: Path | str, answer: Answer, path: Path) -> None:
    """Writes a PNG: frames of the video at even times over the scores of the best classes at these times.

    Args:
      video: a file, an address, or a folder of frames; it is read once more.
      answer: with a timeline.

    Raises:
      VideoError: the video cannot be read.
      disk.WriteError: the file cannot be written.
    """
    import matplotlib  # imported here, because predictions without a picture do not need it
    from matplotlib.figure import Figure

    timeline = answer.prediction.timeline
    assert timeline is not None
    frames = _frames(video, answer)
    aspect = frames[0].shape[0] / frames[0].shape[1]
    inner = _WIDTH - _LEFT - _RIGHT
    strip = min(inner / len(frames) * aspect, 2.5)
    total = strip + 3.6
    with matplotlib.rc_context({**STYLE, "text.parse_math": False}):  # a class with dollars is no formula
        figure = Figure(figsize=(_WIDTH, total), dpi=110)

        def place(bottom: float, height: float):
            return figure.add_axes((_LEFT / _WIDTH, bottom / total, inner / _WIDTH, height / total))

        _draw_strip(place(total - strip - 0.1, strip), frames, inner / len(frames) / strip)
        _draw_curves(place(1.0, total - strip - 0.1 - 1.0 - 0.15), answer)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _frames(video: Path | str, answer: Answer) -> list[np.ndarray]:
    """`FRAMES` frames or fewer, each from the middle of its share of the time, (H, W, 3) uint8 RGB."""
    timeline = answer.prediction.timeline
    assert timeline is not None
    wanted = timeline.seconds * (np.arange(FRAMES) + 0.5) / FRAMES
    frames, begin, frame = list[np.ndarray](), None, None
    for time, frame in timed_pictures(video, answer):  # noqa: B007
        begin = time if begin is None else begin
        while len(frames) < FRAMES and time - begin >= wanted[len(frames)] - 1e-6:
            frames.append(resize_short_side(frame, 200))
        if len(frames) == FRAMES:
            break
    if frame is not None:  # the video is a little shorter than its frames are many
        frames += [resize_short_side(frame, 200)] * (FRAMES - len(frames))
    return frames


def _draw_strip(axis, frames: list[np.ndarray], aspect: float) -> None:
    """Frames side by side, each of the width of its share of the time; what is too high is cut."""
    for k, frame in enumerate(frames):
        height, width = frame.shape[:2]
        rows = min(height, round(width / aspect))
        top = (height - rows) // 2
        axis.imshow(frame[top : top + rows], extent=(k + 0.01, k + 0.99, 0, 1), aspect="auto")
    axis.set_xlim(0, len(frames))
    axis.set_ylim(0, 1)
    axis.set_axis_off()


def _draw_curves(axis, answer: Answer) -> None:
    timeline = answer.prediction.timeline
    assert timeline is not None
    shown = np.argsort(-timeline.scores.max(axis=0), kind="stable")[:CLASSES].tolist()
    color = dict(zip(shown, _COLORS, strict=False))
    times = np.concatenate([[0.0], timeline.centers, [timeline.seconds]])
    for label in shown:
        curve = 100 * timeline.scores[:, label]
        curve = np.concatenate([curve[:1], curve, curve[-1:]])
        axis.plot(times, curve, color=color[label], linewidth=1.6, label=printable(answer.class_names[label]))
    for segment in timeline.segments:
        fill = color.get(segment.label, GRAY)
        axis.axvspan(segment.start, segment.end, color=fill, alpha=0.12, linewidth=0)
    axis.axhline(100 * timeline.options.min_score, color=GRAY, linewidth=0.8, linestyle="--")
    axis.set_xlim(0, timeline.seconds)
    axis.set_ylim(0, 102)
    axis.set_ylabel("score, %")
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.set_major_formatter(lambda value, _: format_seconds(value) if timeline.seconds >= 60 else f"{value:g}")
    axis.set_xlabel("time" if timeline.seconds >= 60 else "seconds")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)
