"""A picture that moves, as videos of several frame rates that show the same moments."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

FASTEST = 50  # frames per second; other rates divide it


def write_moving(path: Path, rate: float, *, seconds: float = 2.0, speed: int = 1, seed: int = 0) -> Path:
    """A texture that moves by `speed` pixels in 1/50 s, without loss: equal moments are equal pixels at any rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), np.uint8)
    texture = cv2.resize(noise, (160, 96), interpolation=cv2.INTER_CUBIC)
    step = round(FASTEST / rate)
    assert step * rate == FASTEST
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for number in range(0, round(seconds * FASTEST), step):
            pixels = np.ascontiguousarray(np.roll(texture, speed * number, axis=1)[:48, :64], np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path
