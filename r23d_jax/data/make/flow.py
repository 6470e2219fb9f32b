"""Optical flow between neighbouring frames, and how it is kept: gray pictures, x above y, quantised to a bound.

A displacement v in pixels is stored as round(128 + 127 * clip(v / bound, -1, 1)): 128 is no motion, and the values are
symmetric, so that a mirrored clip has x' = 256 - x exactly. Bounds: 20 pixels in I3D (Carreira & Zisserman 2017).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np

from r23d_jax.config import FLOW_SCALE, FLOW_ZERO

DEFAULT_BOUND = 20.0  # pixels


def flow_pictures(frames: Iterable[np.ndarray], method: str, bound: float) -> Iterator[np.ndarray]:
    """The flow from each frame to the next, as it is stored.

    Args:
      frames: (H, W, 3) uint8 BGR, at least two.
      method: "tvl1" (slow, what I3D used), "farneback" (what the R(2+1)D paper used) or "dis" (fast).
      bound: pixels that become the largest value; longer displacements are cut.

    Yields:
      (2 H, W) uint8, x above y; one fewer than frames.
    """
    compute = make_method(method)
    before = None
    for frame in frames:
        gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        if before is not None:
            yield quantise(compute(before, gray), bound)
        before = gray


def make_method(method: str) -> Any:
    """One of `config.FLOW_METHODS` as a function of two gray frames, (H, W) uint8.

    It gives displacements in pixels, (H, W, 2) float32: x, then y.
    """
    if method == "tvl1":
        tvl1 = cv2.optflow.DualTVL1OpticalFlow_create()  # pyright: ignore[reportAttributeAccessIssue]
        return lambda a, b: tvl1.calc(a, b, None)
    if method == "dis":
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # pyright: ignore[reportAttributeAccessIssue]
        return lambda a, b: dis.calc(a, b, None)
    # pyramid 0.5 of 3 levels, window 15, 3 iterations, neighbourhood 5 with sigma 1.2: OpenCV's own example
    return lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]


def quantise(flow: np.ndarray, bound: float) -> np.ndarray:
    """(H, W, 2) displacements in pixels -> (2 H, W) uint8, x above y."""
    values = np.rint(FLOW_ZERO + FLOW_SCALE * np.clip(flow / bound, -1, 1)).astype(np.uint8)
    return np.concatenate([values[..., 0], values[..., 1]], axis=0)
