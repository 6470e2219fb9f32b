"""Prints and writes the answers of `predict`: as text, JSON, CSV and subtitles."""

import csv
import io
import sys
from typing import Any, Protocol

from r23d_jax.commands.json_output import print_json
from r23d_jax.evaluation.answer import Answer
from r23d_jax.runtime.progress import printable


class Output(Protocol):
    """Takes the answers in the order of the videos."""

    def answer(self, name: str, answer: Answer) -> None: ...

    def error(self, name: str, reason: str) -> None: ...


class Text:
    """Tables on standard output."""

    def __init__(self, top: int):
        self._top = top

    def answer(self, name: str, answer: Answer) -> None:
        seen = answer.prediction
        noun = "clip" if seen.num_clips == 1 else "clips"
        share = f"{100 * seen.seen:.0f} % of the video seen"
        print(f"{printable(name)}  ({seen.num_frames:,} frames, {seen.num_clips:,} {noun}, {share})")
        if seen.note:
            print(f"  not used: {printable(seen.note)}")
        if seen.pace:
            print(f"  {seen.pace}")
        if seen.timeline is not None:
            _print_timeline(answer, clock(seen.timeline.seconds))
        if seen.timeline is None or not answer.segments:
            _print_table([(name, 100 * score) for name, score in answer.top(self._top)])
        sys.stdout.flush()

    def error(self, name: str, reason: str) -> None:
        print(f"{printable(name)}  not recognized: {printable(reason.removeprefix(f'{name}: '))}", flush=True)


def _print_timeline(answer: Answer, end: str) -> None:
    timeline = answer.prediction.timeline
    assert timeline is not None
    if not answer.segments:
        least = f"{100 * timeline.options.min_score:g} %"
        print(f"  no class scores {least} at any time (--min-score); over the whole video:")
    rows, before = [], 0.0
    for segment in answer.segments:
        if segment.start > before:
            rows.append((before, segment.start, "(no action)", ""))
        rows.append((segment.start, segment.end, printable(segment.class_name), f"{100 * segment.score:6.2f} %"))
        before = segment.end
    if rows and timeline.seconds > before:
        rows.append((before, timeline.seconds, "(no action)", ""))
    width = max((len(row[2]) for row in rows), default=0)
    for start, stop, text, score in rows:
        print(f"  {clock(start):>{len(end)}} - {clock(stop):>{len(end)}}  {text:<{width}}  {score}".rstrip())


def _print_table(ranking: list[tuple[str, float]]) -> None:
    shown = [(printable(name), value) for name, value in ranking]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        print(f"  {name:<{width}}  {value:6.2f} %")


def print_moment(time: float, ranking: list[tuple[str, float]]) -> None:
    """One line for what a camera shows at a time, in seconds since the start."""
    print(
        f"{clock(time):>8}  " + ", ".join(f"{printable(name)} {100 * score:.1f} %" for name, score in ranking),
        flush=True,
    )


class Json:
    """One JSON object per video and line on standard output."""

    def __init__(self, top: int):
        self._top = top

    def answer(self, name: str, answer: Answer) -> None:
        seen = answer.prediction
        row: dict[str, Any] = {"video": name, "frames": seen.num_frames, "clips": seen.num_clips}
        row |= {"seen": round(seen.seen, 4), "stride": seen.stride}
        row |= {"seconds": round(seen.seconds, 3)} if seen.seconds else {}
        row["predictions"] = as_dicts(answer.top(self._top))
        if (timeline := seen.timeline) is not None:
            used = timeline.options
            row |= {"every": round(used.every, 3), "smooth": round(used.smooth, 3), "min_score": used.min_score}
            row["segments"] = [
                {"start": round(start, 3), "end": round(end, 3), "class": label, "score": score}
                for start, end, label, score, _ in answer.segments
            ]
        row |= {"note": f"not used: {seen.note}"} if seen.note else {}
        row |= {"pace": seen.pace} if seen.pace else {}
        print_json(row)

    def error(self, name: str, reason: str) -> None:
        print_json({"video": name, "error": reason})


def as_dicts(ranking: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """The best classes as in JSON."""
    return [{"class": name, "probability": score} for name, score in ranking]


class Csv:
    """A table with one row a video, or one a segment of its timeline."""

    def __init__(self, top: int):
        self._text, self._top = io.StringIO(), top
        self._writer = csv.writer(self._text, lineterminator="\n")
        more = [f"{column}_{rank}" for rank in range(2, top + 1) for column in ("class", "score")]
        self._writer.writerow(["video", "start", "end", "class", "score", *more, "error"])

    def answer(self, name: str, answer: Answer) -> None:
        end = answer.prediction.seconds
        if answer.prediction.timeline is None:
            self._row(name, 0.0, end, answer.top(self._top))
        for segment in answer.segments:
            self._row(name, segment.start, segment.end, segment.top[: self._top])
        if answer.prediction.timeline is not None and not answer.segments:
            self._row(name, 0.0, end, [])

    def error(self, name: str, reason: str) -> None:
        self._writer.writerow([_cell(name), *[""] * (2 + 2 * self._top), _cell(reason)])

    def text(self) -> str:
        """The whole table."""
        return self._text.getvalue()

    def _row(self, name: str, start: float, end: float, ranking: list[tuple[str, float]]) -> None:
        cells = [cell for label, score in ranking for cell in (_cell(label), f"{score:.4f}")]
        missing = [""] * (2 * self._top - len(cells))
        self._writer.writerow([_cell(name), f"{start:.3f}", f"{end:.3f}" if end else "", *cells, *missing, ""])


def _cell(text: str) -> str:
    """Text that a spreadsheet does not run as a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def subtitles(answer: Answer, delay: float = 0.0) -> str:
    """The timeline as the text of an .srt file.

    Args:
      delay: seconds from the start of the video file, from which a player counts, to its first frame.
    """
    return "".join(
        f"{number}\n{_srt_time(start + delay)} --> {_srt_time(end + delay)}\n{printable(label)} {100 * score:.0f} %\n\n"
        for number, (start, end, label, score, _) in enumerate(answer.segments, start=1)
    )


def _srt_time(seconds: float) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, whole = divmod(whole, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{whole:02d},{thousandths:03d}"


def clock(seconds: float) -> str:
    """Formats as `0:07.3` or `1:02:33.0`."""
    minutes, tenths = divmod(round(seconds * 10), 600)
    rest = f"{tenths // 10:02d}.{tenths % 10}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest}" if minutes >= 60 else f"{minutes}:{rest}"
