"""Progress lines where there is no terminal."""

import io
import time

import pytest

from r23d_jax.runtime import progress


def test_a_log_file_gets_plain_lines_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with progress.Progress(40, "clips", "train", stream=out) as bar:
        now[0] += 12.0
        bar.update(10)  # with what had to be compiled
        now[0] += 5.0
        bar.update(5)  # too soon for a line
        now[0] += 5.0
        bar.update(5, note="loss 1.5")
        now[0] += 5.0
        bar.update(5)
    assert out.getvalue().splitlines() == [
        "train: 10/40 clips  0.8 clips/s  ? left",
        "train: 20/40 clips  1.0 clips/s  0:20 left  loss 1.5",
        "train: 25/40 clips  1.0 clips/s  0:15 left  loss 1.5",
    ]


def test_units_done_before_a_resume_do_not_count_towards_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with progress.Progress(100, "steps", "train", initial=90, stream=out) as bar:
        now[0] += 3.0
        bar.update(1)
        now[0] += 8.0
        bar.update(4)
    assert out.getvalue() == "train: 95/100 steps  0.5 steps/s  0:10 left\n"


def test_work_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with progress.Progress(10, "files", "index", stream=out) as bar:
        now[0] += 2.0
        bar.update(10)
    assert out.getvalue() == "index: 10/10 files  5.0 files/s  0:00 left\n"


def test_only_long_work_is_announced() -> None:
    lines: list[str] = []
    with progress.announced("compiling", lines.append, after=60.0):
        pass
    assert lines == []
    with progress.announced("compiling", lines.append, after=0.01):
        time.sleep(0.5)
    assert lines == ["compiling"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (187, "3:07"), (3753, "1:02:33"), (float("inf"), "?")])
def test_format_seconds(seconds: float, text: str) -> None:
    assert progress.format_seconds(seconds) == text


def test_short_work_is_silent_if_asked_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for seconds, lines in ((4.0, 0), (6.0, 1)):
        out, now[0] = io.StringIO(), 0.0
        with progress.Progress(100, "%", "predict", stream=out, after=5.0) as bar:
            now[0] += seconds
            bar.update(100)
        assert out.getvalue().count("\n") == lines
