"""The clips of a camera as it films: always the newest."""

import collections
import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from r23d_jax.config import Preprocessing
from r23d_jax.data.find.video_names import VIDEO_FORMATS
from r23d_jax.data.make.video import VideoError, resize_short_side
from r23d_jax.data.read.views import clip_steps
from r23d_jax.evaluation.timeline import ASSUMED_RATE
from r23d_jax.evaluation.video_source import check_flow, crops_of, flow_of, stride_of

_STREAMS = ",".join(["rtsp", "sdp", "rtp", "mpjpeg", *VIDEO_FORMATS])  # FFmpeg's readers for addresses
_PROTOCOLS = "http,https,httpproxy,tcp,tls,udp,rtp,rtsp"
_PATIENCE = 15.0  # seconds without a frame

_REMEDIES = {
    errno.EACCES: "add yourself to its group (sudo usermod -aG video $USER) and log in again",
    errno.EBUSY: "another program uses it; close that",
    errno.ENODEV: "plug it in again",
}


def open_camera(name: str) -> Any:
    """Opens a camera as a PyAV container.

    Args:
      name: a number, e.g. 0 for /dev/video0, a device, or the address of a network camera (rtsp://, http://).

    Raises:
      VideoError: it is not there or cannot be opened; the message names the device and the remedy.
    """
    timeout = (_PATIENCE, _PATIENCE)
    if "://" in name:
        options = {"format_whitelist": _STREAMS, "protocol_whitelist": _PROTOCOLS, "rtsp_transport": "tcp"}
        try:
            return av.open(name, options=options, timeout=timeout)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"--camera {name}: cannot be opened ({getattr(error, 'strerror', error)})") from error
    device = Path(f"/dev/video{name}" if name.isdecimal() else name)
    if not device.exists():
        found = ", ".join(str(path) for path in sorted(Path("/dev").glob("video*")))
        remedy = f"there are {found}" if found else "no camera is connected, or a container was not given its device"
        raise VideoError(f"--camera {name}: there is no {device}; {remedy}")
    try:
        return av.open(str(device), format="v4l2", timeout=timeout)
    except ValueError as error:
        if isinstance(error, av.error.FFmpegError):
            raise VideoError(f"--camera {name}: {device} is no camera ({error.strerror})") from error
        raise VideoError(
            f"--camera {name}: this PyAV cannot read cameras, because its FFmpeg lacks v4l2; install the wheel (pip "
            "install --force-reinstall --only-binary av av)"
        ) from error
    except (av.error.FFmpegError, OSError) as error:
        remedy = _REMEDIES.get(error.errno or 0, "check that it is a camera: v4l2-ctl --list-devices")
        raise VideoError(f"--camera {name}: {device} cannot be opened ({error.strerror}): {remedy}") from error


class LiveClips:
    """Reads a camera from `open_camera` in a thread and keeps what one clip needs; older frames are dropped.

    A context manager.
    """

    def __init__(self, container: Any, pre: Preprocessing):
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise VideoError("the camera has no video stream")
        own = float(stream.average_rate or stream.guessed_rate or pre.frame_rate or ASSUMED_RATE)
        every = max(round(own / pre.frame_rate), 1) if pre.input == "flow" and pre.frame_rate else 1
        self._container, self._stream, self._pre, self._every = container, stream, pre, every
        self._rate = own / every
        self._steps = clip_steps(pre.read_frames, stride_of(pre, self._rate))
        self._crops: collections.deque[np.ndarray] = collections.deque(maxlen=int(self._steps[-1]) + 1)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)

    @property
    def ended(self) -> bool:
        """Whether no more frames will come."""
        return not self._thread.is_alive()

    def latest(self) -> np.ndarray | None:
        """The newest clip, (read_frames, crop_size, crop_size, C) uint8; None before there are enough frames.

        Raises:
          VideoError: if the camera failed.
        """
        if self._error is not None:
            raise VideoError(f"the camera failed: {getattr(self._error, 'strerror', self._error)}") from self._error
        with self._lock:
            if len(self._crops) < (self._crops.maxlen or 0):
                return None
            return np.stack([self._crops[step] for step in self._steps.tolist()])

    def __enter__(self) -> "LiveClips":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)
        if self.ended:
            self._container.close()

    def _read(self) -> None:
        try:
            for crop in crops_of(self._pictures(), lambda number: True, self._pre):
                if self._stop.is_set():
                    return
                if crop is not None:
                    with self._lock:
                        self._crops.append(crop)
        except Exception as error:
            self._error = error

    def _pictures(self) -> Iterator[np.ndarray | None]:
        if self._pre.input != "flow":
            return self._images("rgb24", self._pre.reduced_to)
        check_flow(self._pre, "--camera")
        return flow_of(self._images("bgr24", self._pre.flow.short_side), self._pre, self._rate, "--camera")

    def _images(self, pixels: str, short_side: int) -> Iterator[np.ndarray]:
        converter = VideoReformatter()
        for number, frame in enumerate(self._container.decode(self._stream)):
            if number % self._every == 0:
                image = converter.reformat(frame, format=pixels, threads=1).to_ndarray()
                yield resize_short_side(image, short_side)


def ticks(seconds: float, every: float = 1.0) -> Iterator[float]:
    """Waits from one multiple of `every` seconds to the next, and gives the time since the start, up to `seconds`.

    What was missed while the reader was busy is left out.
    """
    begin = time.monotonic()
    number = 1
    while number * every <= seconds + 1e-9:
        time.sleep(max(begin + number * every - time.monotonic(), 0.0))
        yield number * every
        number = max(number + 1, int((time.monotonic() - begin) / every) + 1)
