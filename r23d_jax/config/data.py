"""The config of the videos, and of how clips are cut from them."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from r23d_jax.config.fields import Group, between, must, one_of
from r23d_jax.config.kinds import (
    Count,
    CountOrZero,
    Fraction,
    FractionAboveZero,
    FractionBelowOne,
    FractionRange,
    NotNegative,
    Positive,
)
from r23d_jax.config.motion import MotionConfig, conflicts_of_motion
from r23d_jax.config.preprocessing import INPUTS

CROPS = ("multi_scale", "random_resized", "random", "center")
TEMPORAL_SAMPLING = ("random", "segments")
SOURCES = ("frames", "packed", "synthetic", "pictures")
AUGMENT_ON = ("auto", "host", "device")
BROKEN_POLICIES = ("skip", "error")

Scales = Annotated[tuple[FractionAboveZero, ...], must(bool, "one scale or more")]


class DataConfig(Group, place="config.data"):
    """The videos, and how clips are cut from them."""

    # frames: JPEG folders; packed: TFRecord shards; synthetic: generated at the first use; pictures:
    # drawn in memory, for data.motion
    source: Annotated[str, one_of(*SOURCES)] = "frames"
    root: str = "data/ucf101/frames"  # folder of frame folders, or of packed shards
    # gigabytes of the local disk for parts of shards, if root is gs://, s3:// or the like (docs/remote.md)
    remote_cache: Positive = 20.0
    # folder of split lists (docs/datasets.md); "": `lists` beside `root`, made if missing
    lists: str = "ucfTrainTestlist"
    split: Annotated[int, one_of(1, 2, 3)] = 1  # number of the official split
    classes: tuple[str, ...] = ()  # (): all classes of the lists
    # 0: test on the test list; 1, 2 or 3: test on that third of each class's training groups, and train on the others
    fold: Annotated[int, one_of(0, 1, 2, 3)] = 0
    # share of each class's training groups to hold out, for a fusion weight or data.motion
    hold_out: FractionBelowOne = 0.0
    input: Annotated[str, one_of(*INPUTS)] = "rgb"  # frames, differences of frames, both, or optical flow
    num_frames: Count = 16  # of a clip
    frame_stride: Count = 1  # frames from one sampled frame to the next
    stride_jitter: NotNegative = 0.0  # 1: training clips are played up to twice as fast or slow, at random; 0: off
    # seconds from one sampled frame to the next, whatever the rate of each video; 0: `frame_stride` counts frames
    frame_seconds: NotNegative = 0.0
    frame_rate: NotNegative = 0.0  # frames per second of videos whose own rate is not recorded; 0: not known
    # of a training clip: one random run of frames, or a run in each of num_segments parts; evaluated are always runs
    sampling: Annotated[str, one_of(*TEMPORAL_SAMPLING)] = "random"
    num_segments: Count = 4  # for sampling="segments": the clip is this many equal runs of consecutive frames
    # for source="packed": take shards in random order and mix the videos of this many; 0: mix all videos
    shuffle_shards: CountOrZero = 0
    short_side: Count = 136  # pixels; the scale at which crops are taken
    crop_size: Count = 112  # pixels
    # of a training clip; evaluation crops the center, unless eval.crops says otherwise
    crop: Annotated[str, one_of(*CROPS)] = "multi_scale"
    crop_scales: Scales = (1.0, 0.8409, 0.7071, 0.5946, 0.5)  # for crop="multi_scale": fractions of the short side
    crop_area: FractionRange = (0.25, 1.0)  # for crop="random_resized": fraction of the frame
    # mirror half of the clips; auto: unless classes come in left/right pairs
    flip: Annotated[object, must(lambda f: isinstance(f, bool) or f == "auto", "True or False, or 'auto'")] = "auto"
    color_jitter: NotNegative = 0.0  # strength; 0 is off
    hue_jitter: Annotated[float, between(0, 0.5)] = 0.0  # largest change of the hue, in turns of its circle; 0 is off
    random_gray: Fraction = 0.0  # probability that a clip loses its colors; 0 is off
    repeats: Count = 1  # rows of a training batch made of each decoded window, which differ in their augmentations
    antialias: bool = False  # when frames are made smaller; slower
    # decode JPEGs faster, at 1/2, 1/4 or 1/8 of their size, if this share of the crop's pixels remains; 0: off
    dct_scaling: Fraction = 0.0
    mean: tuple[float, ...] = (0.43216, 0.394666, 0.37645)  # of pixels in [0, 1]; two values for input="flow"
    std: tuple[Positive, ...] = (0.22803, 0.22145, 0.216989)  # of each channel, as for mean
    byte_range: bool = False  # True: mean and std apply to pixels in 0..255 (a mistake of the published code)
    # where clips are resized and augmented; auto: on the device, but on the host if that is a CPU
    augment_on: Annotated[str, one_of(*AUGMENT_ON)] = "auto"
    # skip: replace the video, count and name it; error: stop
    on_broken: Annotated[str, one_of(*BROKEN_POLICIES)] = "skip"
    # of the training videos, and of the test videos (fewer than 20 count as 20); more of them stop the run
    max_broken_fraction: Fraction = 0.05
    num_workers: CountOrZero = 0  # threads that read and decode; 0: one per core
    motion: MotionConfig = dataclasses.field(default_factory=MotionConfig)

    def conflicts(self) -> Iterator[str]:
        if self.frame_seconds and self.frame_stride != 1:
            yield (
                f"config.data.frame_seconds={self.frame_seconds:g}: replaces config.data.frame_stride="
                f"{self.frame_stride}; leave that at 1, or set frame_seconds=0"
            )
        if self.shuffle_shards and self.source != "packed":
            yield (
                f"config.data.shuffle_shards={self.shuffle_shards}: data.source={self.source!r} has no shards; set "
                "shuffle_shards=0, or data.source='packed'"
            )
        if self.short_side < self.crop_size:
            yield f"config.data.short_side={self.short_side}: must be at least data.crop_size={self.crop_size}"
        source = INPUTS.get(self.input)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if source and len(values) != source.frame_channels:
                wanted = f"{source.frame_channels} values for data.input={self.input!r}"
                yield f"config.data.{name}={values!r}: must be {wanted}"
        for name, why in (
            ("color_jitter", "has no color"),
            ("hue_jitter", "has no color"),
            ("random_gray", "has no color"),
            ("dct_scaling", "is read exactly"),
        ):
            if self.input == "flow" and getattr(self, name):
                yield f"config.data.{name}={getattr(self, name)}: must be 0 for data.input='flow', which {why}"
        if self.sampling == "segments" and self.num_segments > 0 and self.num_frames % self.num_segments:
            yield (
                f"config.data.num_segments={self.num_segments}: must divide num_frames={self.num_frames} "
                "when config.data.sampling='segments'"
            )
        if self.sampling == "segments" and source and source.extra_frames:
            yield (
                f"config.data.input={self.input!r} with sampling='segments': the difference from one segment to the "
                "next is a jump, not motion; set --config.data.sampling=random"
            )
        yield from conflicts_of_motion(self, self.num_frames + INPUTS.get(self.input, INPUTS["rgb"]).extra_frames)
