"""Pictures that are drawn from numbers when they are read: smooth noise of all sizes, with shapes on it."""

import dataclasses
import math

import cv2
import numpy as np

_SHAPES = (6, 40)  # in a picture
_CORNERS = (3, 9)  # of a shape
_FINEST = 2  # pixels between two random values of the finest noise


@dataclasses.dataclass(frozen=True)
class GeneratedFrames:
    """Frame i of video v is picture (number[v], i), of one size, encoded as BMP, which takes the least time."""

    number: np.ndarray  # (N,) int64
    height: int
    width: int

    def read(self, video: int, frame: int) -> bytes:
        pixels = draw_picture((int(self.number[video]), frame), self.height, self.width)
        return cv2.imencode(".bmp", pixels)[1].tobytes()

    def locate(self, video: int, frame: int) -> str:
        return f"generated picture {frame} of {self.number[video]}"

    def problem(self, video: int, frame: int) -> str | None:
        return None

    def take(self, rows: np.ndarray) -> "GeneratedFrames":
        return dataclasses.replace(self, number=self.number[rows])


def draw_picture(numbers: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8; the same numbers, not negative, give the same picture."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(numbers)))
    picture = _noise(random, height, width)
    shapes = np.zeros_like(picture)
    for _ in range(int(random.integers(*_SHAPES))):
        radius = min(height, width) * math.exp(random.uniform(math.log(0.02), math.log(0.3)))
        count = int(random.integers(*_CORNERS))
        angles = np.sort(random.uniform(0, 2 * math.pi, count))
        lengths = radius * random.uniform(0.4, 1.0, count)
        center = random.uniform((0, 0), (width, height))
        corners = center + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        color = random.uniform(-110, 110, 3).tolist()
        cv2.fillPoly(shapes, [corners.round().astype(np.int32)], color)
    return (128 + picture + shapes).clip(0, 255).astype(np.uint8)


def _noise(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) float32 around 0: each scale is half as coarse as the one before and has two thirds of its
    contrast, as large things have more contrast than small ones in photographs."""
    total, step, contrast = np.zeros((height, width, 3), np.float32), max(height, width) / 2, random.uniform(20, 60)
    while step >= _FINEST:
        rows, columns = math.ceil(height / step) + 1, math.ceil(width / step) + 1
        coarse = random.normal(0, contrast, (rows, columns, 3)).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        step, contrast = step / 2, contrast / 1.5
    return total
