"""Pseudo-motion: clips of a window that slides over one picture. How it slides is their class (docs/pretraining.md)."""

from collections.abc import Iterator
from typing import Annotated, Any

from r23d_jax.config.fields import Group, must, one_of
from r23d_jax.config.kinds import Fraction, FractionRange

# Where the picture goes; the window goes the other way: down and to the right
_WINDOW_GOES = {"left": (0, 1), "right": (0, -1), "up": (1, 0), "down": (-1, 0)}
_SPEEDS = ("slow", "fast")
MOTIONS = ("still", *(f"{direction} {speed}" for direction in _WINDOW_GOES for speed in _SPEEDS))
COLOR_CHANGES = ("frame", "clip")


class MotionConfig(Group, place="config.data.motion"):
    """Pseudo-motion, made of single pictures for training without labels. Its classes replace those of the videos."""

    # pixels that the picture moves a frame in the slow and in the fast classes, e.g. (2, 4); (): off
    speeds: Annotated[
        tuple[int, ...], must(lambda s: not s or (len(s) == 2 and 0 < s[0] < s[1]), "() or two rising speeds above 0")
    ] = ()
    frozen: Fraction = 0.5  # probability that a clip moves only inside a random box
    # least and greatest share of the clip's height, and of its width, that this box covers
    box: FractionRange = (0.3, 0.5)
    # what changes its colors at once by data.color_jitter: each frame, so that following one color is not enough to
    # see the motion, or the whole clip
    colors: Annotated[str, one_of(*COLOR_CHANGES)] = "frame"
    gray: Fraction = 0.0  # probability that a frame, or a clip, loses its colors


def velocities(speeds: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Pixels that the window goes down and to the right in a frame, for each class of `MOTIONS`."""
    return (0, 0), *((down * v, right * v) for down, right in _WINDOW_GOES.values() for v in speeds)


def motion_side(data: Any, read_frames: int) -> int:
    """Height and width in pixels of a picture on which the window of a `DataConfig` has room for its fastest motion."""
    return data.crop_size + (read_frames - 1) * max(data.motion.speeds)


def conflicts_of_motion(data: Any, read_frames: int) -> Iterator[str]:
    """What in a `DataConfig` does not go together with its pseudo-motion."""
    why = f"with data.motion.speeds={data.motion.speeds}"
    if not data.motion.speeds:
        if data.source == "pictures":
            yield "config.data.source='pictures': has no classes of its own; set config.data.motion.speeds, e.g. (2, 4)"
        return
    if data.input not in ("rgb", "rgb_diff"):
        yield f"config.data.input={data.input!r}: must be rgb or rgb_diff {why}, because a picture has no other motion"
    if data.repeats < 1 or data.repeats % len(MOTIONS):
        count = len(MOTIONS)
        yield f"config.data.repeats={data.repeats}: must be {count}, or a multiple of it, {why}: a clip of each class"
    if not data.hold_out:
        yield f"config.data.hold_out=0: must be above 0 {why}; the groups that it holds out are the validation set"
    if data.frame_seconds:
        yield f"config.data.frame_seconds={data.frame_seconds:g}: must be 0 {why}, because a clip is made of one frame"
    if data.flip is True:
        yield f"config.data.flip=True: must be False {why}, because a mirror image moves the other way"
    for name, instead in (
        ("hue_jitter", "data.color_jitter changes colors"),
        ("random_gray", "data.motion.gray takes colors away"),
        ("stride_jitter", "data.motion.speeds are the paces"),
    ):
        if getattr(data, name):
            yield f"config.data.{name}={getattr(data, name):g}: must be 0 {why}, where {instead}"
    if data.short_side < (side := motion_side(data, read_frames)):
        yield (
            f"config.data.short_side={data.short_side}: must be at least {side} {why}, so that a window of "
            f"{data.crop_size} pixels has room for {read_frames} frames"
        )
    if data.input == "rgb_diff" and data.motion.colors == "frame" and (data.color_jitter or data.motion.gray):
        yield (
            "config.data.motion.colors='frame': must be 'clip' for data.input='rgb_diff', whose differences would "
            "show the change of colors"
        )
