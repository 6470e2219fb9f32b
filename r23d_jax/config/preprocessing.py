"""From frames to the input of a network: what every checkpoint keeps of it."""

import dataclasses
from typing import NamedTuple

from r23d_jax.config.fields import look_up


class Input(NamedTuple):
    """The input of a network: channels of a clip, of a frame and, first in a clip, those that are a frame's own colors.

    `extra_frames` are to be read beyond those of the clip.
    """

    channels: int
    frame_channels: int
    pixel_channels: int
    extra_frames: int = 0


INPUTS = {
    "rgb": Input(3, 3, 3),
    "rgb_diff": Input(3, 3, 0, extra_frames=1),  # each frame minus the one before
    "rgb_and_diff": Input(6, 3, 3, extra_frames=1),  # each frame, and that difference: early fusion
    "flow": Input(2, 2, 0),
}
FLOW_ZERO, FLOW_SCALE = 128, 127  # optical flow is stored as bytes: 128 is no motion, 1 and 255 are the bound


@dataclasses.dataclass(frozen=True)
class Flow:
    """How optical flow was computed, as `prepare` records it."""

    method: str = ""  # a key of METHODS in data/make/flow.py; "": not known
    bound: float = 20.0  # displacement in pixels that becomes the largest stored value
    short_side: int = 0  # of the frames, in pixels; 0: their own size

    def __str__(self) -> str:
        size = f", frames of short side {self.short_side}" if self.short_side else ""
        return f"optical flow by {self.method}, bound {self.bound:g} pixels{size}"


NO_FLOW = Flow()
RATE_TOLERANCE = 0.01  # rates that differ by less are taken as equal


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How raw frames become the network's input; part of every checkpoint.

    `frame_rate` is that of the training videos in frames per second, 0 if it is not known. `reduced_to` is the short
    side in pixels to which `prepare` had reduced their frames, 0 if it had not, or it is not known. The other fields
    that `DataConfig` has too mean the same there.
    """

    input: str
    num_frames: int
    frame_stride: int
    short_side: int
    crop_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    byte_range: bool
    antialias: bool
    frame_seconds: float = 0.0
    frame_rate: float = 0.0
    flow: Flow = NO_FLOW
    reduced_to: int = 0  # optical flow has its own

    @property
    def read_frames(self) -> int:
        """Frames to read per clip: a difference of T frames needs T + 1."""
        return self.num_frames + look_up(INPUTS, self.input, "config.data.input").extra_frames

    def stride_at(self, rate: float) -> float:
        """Frames from one of a clip to the next that take as much time as in training.

        Args:
          rate: of the video in frames per second; 0 if it is not known, and taken as that of the training.
        """
        rate = rate or self.frame_rate
        if self.frame_seconds:
            return self.frame_seconds * rate
        if not self.frame_rate or abs(rate / self.frame_rate - 1) < RATE_TOLERANCE:
            return float(self.frame_stride)
        return self.frame_stride * rate / self.frame_rate
