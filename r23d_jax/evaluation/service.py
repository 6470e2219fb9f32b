"""A trained network in a process of its own, which answers one video at a time and is replaced if one hangs."""

import contextlib
import dataclasses
import multiprocessing
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from r23d_jax.config import UserError

START_SECONDS = 300.0  # for loading the network


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a page shows of an answer.

    Attributes:
      ranking: probability by class name, the highest first.
      segments: start, end, class and score of each part of the video.
      picture, video: files beside the upload: the timeline, and the video with its classes drawn in.
      num_frames, num_clips: frames in the video, and clips scored.
      seen: share of the video that the clips span, in (0, 1].
    """

    ranking: dict[str, float]
    segments: list[tuple[float, float, str, float]]
    picture: Path
    video: Path
    num_frames: int
    num_clips: int
    seen: float


class Service:
    """Answers videos in a child process. A video that hangs or crashes a decoder costs that process, not the page.

    Args:
      workdir: a run's folder or one checkpoint.
      top: classes in an answer.
      video_seconds: the longest video by its header; one without a duration is bounded by `answer_seconds` alone.
      answer_seconds: after which a video is given up.

    Raises:
      UserError: if the network cannot be loaded.
    """

    def __init__(self, workdir: Path, top: int = 5, video_seconds: float = 120.0, answer_seconds: float = 120.0):
        self._arguments = (workdir, top, video_seconds)
        self._seconds = answer_seconds
        self._one_at_a_time = threading.Lock()
        self._start()

    def __call__(self, video: Path) -> Shown:
        """The answer for a video file.

        Raises:
          UserError: if it cannot be read, is too long, or takes too long; the message does not name its folder.
        """
        with self._one_at_a_time:
            if not self._process.is_alive():
                self._start()
            self._connection.send(video)
            return self._receive(self._seconds, "the video was given up")

    def close(self) -> None:
        """Ends the child process."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # jax's threads do not survive a fork
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_answer_all, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        self.title = self._receive(START_SECONDS, "the network was not loaded")

    def _receive(self, seconds: float, failed: str):
        """What the child sends; an error of the user is raised here."""
        try:
            if not self._connection.poll(seconds):
                self.close()
                raise UserError(f"{failed} after {seconds:g} seconds")
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            status = self._process.exitcode
            self.close()
            raise UserError(f"{failed}: its process ended with status {status}") from None
        if isinstance(answer, UserError):
            raise answer
        return answer


def _answer_all(connection: Connection, workdir: Path, top: int, video_seconds: float) -> None:
    """The child: loads the network, sends its title, then an answer or an error for each path that it receives."""
    from r23d_jax.runtime import backend

    backend.prepare_process()
    import av
    import av.error

    from r23d_jax.evaluation import annotate, answer, timeline_picture
    from r23d_jax.evaluation.trained import load_model

    try:
        model = load_model(workdir)
        if not model.class_names:
            raise UserError(f"{model.path}: has no classifier; train one with --config.init_from={model.path}")
    except UserError as error:
        connection.send(UserError(str(error)))
        return
    connection.send(f"{model.name}, {len(model.class_names)} classes")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            video = connection.recv()
            try:
                with contextlib.suppress(av.error.FFmpegError, OSError), av.open(str(video)) as container:
                    duration = (container.duration or 0) / av.time_base
                    if duration > video_seconds:
                        raise UserError(
                            f"the video takes {duration:.0f} seconds; at most {video_seconds:g} are accepted"
                        )
                found = answer.predict(model, video, timeline=True)
                picture, drawn = (video.with_name(name) for name in ("timeline.png", "classes.mp4"))
                timeline_picture.draw_timeline(video, found, picture)
                annotate.annotate(video, found, drawn)
                segments = [tuple(segment[:4]) for segment in found.segments]
                seen = found.prediction
                connection.send(
                    Shown(dict(found.top(top)), segments, picture, drawn, seen.num_frames, seen.num_clips, seen.seen)
                )
            except UserError as error:
                connection.send(UserError(str(error).replace(f"{video}: ", "").replace(str(video), "the video")))
