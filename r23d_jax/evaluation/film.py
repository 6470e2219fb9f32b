"""Film strips: a few frames of a video, side by side."""

from collections.abc import Sequence

import cv2
import numpy as np

from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.evaluation.figures import image

_QUALITY = 85  # of a JPEG


def sample_frames(index: VideoIndex, video: int, count: int = 8) -> list[np.ndarray]:
    """At most `count` evenly spaced frames, with the first and the last, (H, W, 3) uint8 RGB; no unreadable ones."""
    wanted = np.unique(np.linspace(0, max(int(index.num_frames[video]) - 1, 0), count).round().astype(int))
    frames = []
    for number in wanted.tolist():
        try:
            encoded = np.frombuffer(index.frames.read(video, number), np.uint8)
            decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if len(encoded) else None
        except (OSError, cv2.error):
            continue
        if decoded is not None:
            frames.append(decoded[..., ::-1])
    return frames


def film_strip(frames: Sequence[np.ndarray], height: int = 120) -> str:
    """Joins frames, (H, W, 3) uint8 RGB and at least one, into one `<img>` of a height in pixels."""
    gap = np.full((height, 3, 3), 255, np.uint8)
    pieces: list[np.ndarray] = []
    for frame in frames:
        width = max(1, round(frame.shape[1] * height / frame.shape[0]))
        # INTER_AREA averages when a frame is reduced; a small frame is enlarged smoothly
        method = cv2.INTER_AREA if frame.shape[0] >= height else cv2.INTER_CUBIC
        pieces += [cv2.resize(frame, (width, height), interpolation=method), gap]
    strip = np.concatenate(pieces[:-1], axis=1)
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(strip[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return image(encoded.tobytes(), "image/jpeg", f"{len(frames)} frames of the video, in order")
