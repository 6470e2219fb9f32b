"""A trained network in a process of its own, which answers one video at a time and is replaced if one hangs."""

import contextlib
import dataclasses
import functools
import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r23d_jax.config import UserError

if TYPE_CHECKING:
    from r23d_jax.evaluation.explain import Explainer
    from r23d_jax.evaluation.trained import TrainedModel

RESTART_SECONDS = 300.0  # for loading the network again
MAP_CLIPS = 64  # clips whose maps are shown at most
# Inputs that are no frames -> what their maps are drawn on
_DRAWN_ON = {
    "rgb_diff": "The network reads differences of frames; each is shown on the first of its two frames.",
    "rgb_and_diff": "The network reads frames and their differences; each is shown on the first of its two frames.",
    "flow": "The network reads optical flow; the frames are those that it was computed from.",
}


@dataclasses.dataclass(frozen=True)
class Maps:
    """Where the network looks."""

    note: str  # what the maps show, or why there are none
    # picture, video: files beside the upload: some frames with their maps, and all; None without maps
    picture: Path | None = None
    video: Path | None = None


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a page shows of an answer."""

    ranking: dict[str, float]  # probability by class name, the highest first
    segments: list[tuple[float, float, str, float]]  # start, end, class and score of each part of the video
    # picture, video: files beside the upload: the timeline, and the video with its classes drawn in
    picture: Path
    video: Path
    # num_frames, num_clips: frames in the video, and clips scored
    num_frames: int
    num_clips: int
    seen: float  # share of the video that the clips span, in (0, 1]
    maps: Maps | None = None  # where the network looks, if that was asked for


class Service:
    """Answers videos in a child process. A video that hangs or crashes a decoder costs that process, not the page.

    Args:
      weights: what `load_model` takes.
      video_seconds: the longest video by its header; one without a duration is bounded by `answer_seconds` alone.
      answer_seconds: after which a video is given up; the maps share them with the classes.

    Raises:
      UserError: if the network cannot be loaded.
    """

    def __init__(self, weights: Path, top: int = 5, video_seconds: float = 120.0, answer_seconds: float = 120.0):
        self._arguments = (weights, top, video_seconds)
        self._seconds = answer_seconds
        self._one_at_a_time = threading.Lock()
        self._start(None)  # weights by name are downloaded first, which may take any time

    def __call__(self, video: Path, maps: bool = False) -> Shown:
        """The answer for a video file.

        Args:
          maps: whether to show where the network looks. Without success the answer has the reason instead.

        Raises:
          UserError: if it cannot be read, is too long, or takes too long; the message does not name its folder.
        """
        with self._one_at_a_time:
            if not self._process.is_alive():
                self._start(RESTART_SECONDS)
            until = time.monotonic() + self._seconds
            self._connection.send((video, maps))
            shown = self._receive(self._seconds, "the video was given up")
            if not maps:
                return shown
            try:
                found = self._receive(max(until - time.monotonic(), 0.0), "the maps were given up")
            except UserError as error:
                found = Maps(f"There are no maps: {error}")
            return dataclasses.replace(shown, maps=found)

    def close(self) -> None:
        """Ends the child process."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _start(self, seconds: float | None) -> None:
        context = multiprocessing.get_context("spawn")  # jax's threads do not survive a fork
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_answer_all, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        self.title = self._receive(seconds, "the network was not loaded")

    def _receive(self, seconds: float | None, failed: str):
        """What the child sends; an error of the user is raised here."""
        try:
            if seconds is not None and not self._connection.poll(seconds):
                self.close()
                raise UserError(f"{failed} after {round(seconds, 1):g} seconds")
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            status = self._process.exitcode
            self.close()
            raise UserError(f"{failed}: its process ended with status {status}") from None
        if isinstance(answer, UserError):
            raise answer
        return answer


def _answer_all(connection: Connection, weights: Path, top: int, video_seconds: float) -> None:
    """The child: loads the network, sends its title, then an answer or an error for each path that it receives.

    Where maps are asked for, they follow the answer, or an error does.
    """
    from r23d_jax.runtime import backend

    backend.prepare_process()
    import av
    import av.error

    from r23d_jax.evaluation import annotate, answer, timeline_picture
    from r23d_jax.evaluation.explain import Explainer
    from r23d_jax.evaluation.trained import load_model

    try:
        model = load_model(weights)
        if not model.class_names:
            raise UserError(f"{model.path}: has no classifier; train one with --config.init_from={model.path}")
    except UserError as error:
        connection.send(UserError(str(error)))
        return
    explainer = functools.cache(lambda: Explainer(model, model.preprocessing))
    title = f"{model.name}, {len(model.class_names)} classes"  # without a path, because visitors see it
    connection.send(model.title if model.chosen else title)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            video, maps = connection.recv()
            try:
                with contextlib.suppress(av.error.FFmpegError, OSError), av.open(str(video)) as container:
                    duration = (container.duration or 0) / av.time_base
                    if duration > video_seconds:
                        raise UserError(
                            f"the video takes {duration:.0f} seconds; at most {video_seconds:g} are accepted"
                        )
                found = answer.predict(model, video, timeline=True)
                picture, drawn = _beside(video, "timeline.png"), _beside(video, "classes.mp4")
                timeline_picture.draw_timeline(video, found, picture)
                annotate.annotate(video, found, drawn)
                segments = [(part.start, part.end, part.class_name, part.score) for part in found.segments]
                seen = found.prediction
                connection.send(
                    Shown(dict(found.top(top)), segments, picture, drawn, seen.num_frames, seen.num_clips, seen.seen)
                )
                if maps:
                    connection.send(_maps(model, explainer(), video, int(found.scores.argmax())))
            except UserError as error:
                connection.send(UserError(str(error).replace(f"{video}: ", "").replace(str(video), "the video")))


def _maps(model: "TrainedModel", explainer: "Explainer", video: Path, target: int) -> Maps:
    from r23d_jax.evaluation import overlay
    from r23d_jax.evaluation.video_source import open_source, stride_of

    pre = model.preprocessing
    source = open_source(video, pre)
    count, stride = source.count(), stride_of(pre, source.rate)
    cover = overlay.whole_video(count, pre, stride)
    starts = cover[np.unique(np.linspace(0, len(cover) - 1, MAP_CLIPS).round().astype(int))]
    found = explainer(source.clips(starts), target).maps
    seen = overlay.moments(found, starts, count, pre, stride)
    note = [f"Yellow raises the score of {model.class_names[target]} most (Grad-CAM)."]
    if not found.any():
        note = [f"No place raises the score of {model.class_names[target]}."]
    elif found.shape[2:] == (1, 1):
        note = ["The network's last feature map has one place, so the curve tells when, and nothing tells where."]
    if len(starts) < len(cover):
        note.append(f"{len(starts)} of the {len(cover)} clips of the video are shown.")
    note += [_DRAWN_ON[pre.input]] if pre.input in _DRAWN_ON else []
    frames, rate = overlay.open_frames(video, pre), overlay.rate_of(video, source) / stride
    picture, film = _beside(video, "maps.png"), _beside(video, "maps.mp4")
    overlay.write_maps(frames, starts, found, seen, pre, rate, picture=picture, video=film)
    return Maps(" ".join(note), picture, film)


def _beside(video: Path, name: str) -> Path:
    """A file in the folder of the upload, which has another name whatever the upload is called."""
    return video.with_name(f"{video.stem}_{name}")
