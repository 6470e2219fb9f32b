"""Optical flow between neighboring frames, stored as gray pictures, x above y, quantized up to a bound.

A displacement v in pixels is stored as round(128 + 127 * clip(v / bound, -1, 1)). 128 is no motion, and the values are
symmetric, so a mirrored clip has exactly x' = 256 - x. I3D uses a bound of 20 pixels (Carreira & Zisserman 2017).
"""

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
      method: a key of `METHODS`: "tvl1" (slow, used by I3D), "farneback" (used by the R(2+1)D paper) or "dis" (fast).
      bound: displacement in pixels that becomes the largest value; longer ones are clipped.

    Yields:
      (2 H, W) uint8, x above y; one fewer than frames.
    """
    compute = look_up(METHODS, method, "flow")()
    before = None
    for frame in frames:
        gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        if before is not None:
            yield quantize(compute(before, gray), bound)
        before = gray


def _tvl1() -> Method:
    tvl1 = cv2.optflow.DualTVL1OpticalFlow_create()  # pyright: ignore[reportAttributeAccessIssue]
    return lambda a, b: tvl1.calc(a, b, None)


def _farneback() -> Method:
    # pyramid 0.5 of 3 levels, window 15, 3 iterations, neighborhood 5 with sigma 1.2: OpenCV's own example
    return lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]


def _dis() -> Method:
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # pyright: ignore[reportAttributeAccessIssue]
    return lambda a, b: dis.calc(a, b, None)


METHODS: dict[str, Callable[[], Method]] = {"tvl1": _tvl1, "farneback": _farneback, "dis": _dis}


def quantize(flow: np.ndarray, bound: float) -> np.ndarray:
    """(H, W, 2) displacements in pixels -> (2 H, W) uint8, x above y."""
    values = np.rint(FLOW_ZERO + FLOW_SCALE * np.clip(flow / bound, -1, 1)).astype(np.uint8)
    return np.concatenate([values[..., 0], values[..., 1]], axis=0)
