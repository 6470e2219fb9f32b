"""Optical flow between neighboring frames, stored as gray pictures, x above y, quantized up to a bound.

A displacement v in pixels is stored as round(128 + 127 * clip(v / bound, -1, 1)). 128 is no motion, and the values are
symmetric, so a mirrored clip has exactly x' = 256 - x. I3D uses a bound of 20 pixels (Carreira & Zisserman 2017).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import numpy as np

from r23d_jax.config import FLOW_SCALE, FLOW_ZERO, look_up

DEFAULT_BOUND = 20.0  # pixels
Method = Callable[[np.ndarray, np.ndarray], Any]  # two gray frames, (H, W) uint8 -> (H, W, 2) float32 pixels: x, then y


def flow_pictures(frames: Iterable[np.ndarray], method: str, bound: float) -> Iterator[np.ndarray]:
    """Computes the flow from each frame to the next, in its stored form.

    Args:
      frames: (H, W, 3) uint8 BGR, at least two.
      method: a key of `METHODS`: "dis" (fast), "farneback" (used by the R(2+1)D paper) or "tvl1" (slow, used by I3D).
      bound: displacement in pixels that becomes the largest value; longer ones are clipped.

    Yields:
      (2 H, W) uint8, x above y; one fewer than frames.
    """
    between = flow_between(method, bound)
    for before, after in itertools.pairwise(frames):
        yield between(before, after)


def flow_between(method: str, bound: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The function from two frames, (H, W, 3) uint8 BGR, to their flow in its stored form; see `flow_pictures`."""
    compute = look_up(METHODS, method, "flow")()

    def between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        return quantize(compute(*(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in (before, after))), bound)

    return between


def _tvl1() -> Method:
    tvl1 = cv2.optflow.DualTVL1OpticalFlow_create()  # pyright: ignore[reportAttributeAccessIssue]
    return lambda a, b: tvl1.calc(a, b, None)


def _farneback() -> Method:
    # pyramid 0.5 of 3 levels, window 15, 3 iterations, neighborhood 5 with sigma 1.2: OpenCV's own example
    return lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]


def _dis() -> Method:
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # pyright: ignore[reportAttributeAccessIssue]
    return lambda a, b: dis.calc(a, b, None)


METHODS: dict[str, Callable[[], Method]] = {"dis": _dis, "farneback": _farneback, "tvl1": _tvl1}


def as_channels(picture: np.ndarray) -> np.ndarray:
    """(2 H, W) stored flow -> (H, W, 2)."""
    return np.stack(np.split(picture, 2), axis=-1)


def quantize(flow: np.ndarray, bound: float) -> np.ndarray:
    """(H, W, 2) displacements in pixels -> (2 H, W) uint8, x above y."""
    values = np.rint(FLOW_ZERO + FLOW_SCALE * np.clip(flow / bound, -1, 1)).astype(np.uint8)
    return np.concatenate([values[..., 0], values[..., 1]], axis=0)
