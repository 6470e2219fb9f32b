"""Features: what a layer of a network gives for every video, averaged over the video or for each time step."""

import collections
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from r23d_jax.config import DataConfig, EvalConfig, Preprocessing, UserError, look_up
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.make.video import VideoError
from r23d_jax.data.read.views import make_views
from r23d_jax.evaluation.video_source import open_source, stride_of
from r23d_jax.models.convolution import compiled_for
from r23d_jax.models.functional import split_model
from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.runtime import disk, parallel
from r23d_jax.runtime.progress import Progress, announced

COMPILING = "compiling the network, which may take a minute"
_IN_FLIGHT = 2  # batches dispatched before the oldest one's features are read: the device always has its next batch

Batch = dict[str, np.ndarray]  # "video" (B, T, H, W, C) uint8, "view" (B,) int32, "mask" (B,) float32


@dataclasses.dataclass(frozen=True)
class Videos:
    """N videos and what is known about them."""

    names: Sequence[str]  # one for each
    labels: np.ndarray  # (N,) int32, class numbers; -1 where the class is not known
    classes: tuple[str, ...]  # their names
    groups: Sequence[str]  # the recording or person of each, which two sides of a split must not share
    sides: Sequence[str]  # "train", "test" or "" for each
    left_out: int = 0  # files beside them that are no videos to use

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: "Videos") -> "Videos":
        return Videos(
            names=[*self.names, *other.names],
            labels=np.concatenate([self.labels, other.labels]),
            classes=self.classes,
            groups=[*self.groups, *other.groups],
            sides=[*self.sides, *other.sides],
            left_out=self.left_out + other.left_out,
        )


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of features."""

    values: np.ndarray  # (R, D) float32
    video: np.ndarray  # (R,) int32, the video of each row
    # (R,) float32, the middle of each time step, in frames of the video; () if rows are averages of videos
    frame: np.ndarray


# -- layers ------------------------------------------------------------------------------------------------------------


class _Identity(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def _through(stages: int) -> Callable[[Any, jax.Array], jax.Array]:
    def run(model: Any, video: jax.Array) -> jax.Array:
        x = model.stem(video)
        for stage in list(model.stages)[:stages]:
            x = stage(x, None)
        return x

    return run


def _classifier_input(model: Any, video: jax.Array) -> jax.Array:
    model.head.classifier = _Identity()  # every head names its last layer so
    return model.head(model.features(video), None)


# --layer -> (network, (B, T, H, W, C) float32) -> (B, T', H', W', D), or (B, D) of a whole clip
LAYERS: dict[str, Callable[[Any, jax.Array], jax.Array]] = {
    "stem": _through(0),
    **{f"stage{number}": _through(number) for number in (1, 2, 3, 4)},
    "classifier": _classifier_input,
}


class Extractor:
    """Computes a layer of a network for batches of clips.

    Args:
      layer: a key of `LAYERS`; "classifier" is what the last linear layer reads.
      steps: keep the time steps of the layer instead of their average.
      batch_size: clips per call, rounded up to a multiple of the devices.

    Raises:
      UserError: the network has no such layer, or the layer has no time steps.
    """

    def __init__(self, model: VideoNetwork, pre: Preprocessing, layer: str, steps: bool, batch_size: int):
        compute = look_up(LAYERS, layer, "--layer")
        if layer == "classifier" and not hasattr(model.head, "classifier"):
            raise UserError("--layer classifier: the network has no classifier; use --layer stage4")
        if layer == "classifier" and steps:
            raise UserError("--steps: the classifier reads one vector for a whole clip; add --layer stage4")
        self.pre, self.layer, self.steps = pre, layer, steps
        self.mesh = parallel.make_mesh()
        self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
        network, params, batch_stats = split_model(model)
        whole = NamedSharding(self.mesh, PartitionSpec())
        self._values = jax.tree.map(lambda leaf: parallel.place(leaf, whole), (params, batch_stats))

        @compiled_for(parallel.platform(self.mesh))
        def step(values: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            x = compute(network.build(*values), prepare_video(batch["video"], pre)).astype(jnp.float32)
            if x.ndim == 5:
                x = x.mean((2, 3) if steps else (1, 2, 3))
            return x, batch["view"], batch["mask"]

        self._step = jax.jit(step, out_shardings=whole, compiler_options=parallel.compiler_options(self.mesh))

    def __call__(self, batches: Iterable[Batch], progress: Progress) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Features (b, D) or (b, T', D) float32 of the clips of each batch that are not padding, and their views."""
        in_flight: collections.deque[tuple[jax.Array, jax.Array, jax.Array]] = collections.deque()

        def oldest() -> tuple[np.ndarray, np.ndarray]:
            values, view, mask = jax.device_get(in_flight.popleft())
            return values[mask > 0], view[mask > 0]

        first = True
        for batch in batches:
            rows = {name: batch[name] for name in ("video", "view", "mask")}
            with announced(COMPILING, progress.message) if first else nullcontext():
                in_flight.append(self._step(self._values, parallel.global_batch(rows, self.mesh)))
            first = False
            if len(in_flight) > _IN_FLIGHT:
                yield oldest()
        while in_flight:
            yield oldest()


# -- clips -------------------------------------------------------------------------------------------------------------


def of_index(
    extractor: Extractor, index: VideoIndex, data: DataConfig, num_clips: int, log: Callable[[str], None]
) -> Rows:
    """Features of the videos of a prepared data set. Clips that cannot be read are logged and left out.

    With several hosts, each reads its own part of every batch, and all get the features of all videos.

    Args:
      index: N videos.
      data: the config that found them, with the network's preprocessing.
      num_clips: evenly spaced clips of each video.

    Raises:
      BrokenVideoError: more clips are broken than `data.max_broken_fraction` allows.
    """
    from r23d_jax.data.read import pipeline  # imports TensorFlow
    from r23d_jax.data.read.views import video_strides

    strides = video_strides(index, data)
    views = make_views(index.num_frames, extractor.pre, EvalConfig(views="uniform", num_clips=num_clips), strides)
    broken = pipeline.BrokenLog(data, log=log)
    host, num_hosts = jax.process_index(), jax.process_count()
    batches = pipeline.eval_batches(
        index, views, data, batch_size=extractor.batch_size, host=host, num_hosts=num_hosts, broken=broken, crops=1
    )
    sums = _Collected(extractor, len(index))
    with Progress(len(views), "clips", "features", shown=host == 0) as progress:
        for values, view in extractor(batches, progress):
            video = views.video[view]
            sums.add(values, video, views.start[view], strides[video], index.num_frames[video])
            progress.update(len(view))
    return sums.rows()


def of_files(
    extractor: Extractor, paths: Sequence[Path | str], num_clips: int, log: Callable[[str], None]
) -> tuple[Rows, dict[Path | str, str]]:
    """Features of video files and folders of frames, read as `predict` does; also why some could not be read.

    Batches go across videos, and memory does not grow with the length of a video.

    Args:
      paths: N files or folders, or addresses that are a str.
      num_clips: evenly spaced clips of each video.
      log: takes the reason of each failure.
    """
    views = EvalConfig(views="uniform", num_clips=num_clips)
    places: list[tuple[int, int, float, int]] = []  # of each clip: video, start, stride, frames in the video
    failed: dict[Path | str, str] = {}

    def clips() -> Iterator[np.ndarray]:
        for video, path in enumerate(paths):
            try:
                source = open_source(path, extractor.pre)
                count, stride = source.count(), stride_of(extractor.pre, source.rate)
                starts = make_views(np.array([count]), extractor.pre, views, np.array([stride])).start
                for start, clip in zip(starts.tolist(), source.clips(starts), strict=True):
                    places.append((video, start, stride, count))
                    yield clip
            except VideoError as error:
                failed[path] = str(error)
                log(f"left out: {error}")

    def batches() -> Iterator[Batch]:
        size, given, source = extractor.batch_size, 0, clips()
        while batch := list(itertools.islice(source, size)):
            video = np.stack(batch + [np.zeros_like(batch[0])] * (size - len(batch)))
            view = np.arange(given, given + size, dtype=np.int32)
            given += len(batch)
            yield {"video": video, "view": view, "mask": (np.arange(size) < len(batch)).astype(np.float32)}

    sums = _Collected(extractor, len(paths))
    with Progress(len(paths), "videos", "features") as progress:
        for values, view in extractor(batches(), progress):
            video, start, stride, count = (np.array(column) for column in zip(*(places[k] for k in view), strict=True))
            sums.add(values, video, start, stride, count)
            progress.update(int(video[-1]) - progress.done)
        progress.update(len(paths) - progress.done)
    bad = [number for number, path in enumerate(paths) if path in failed]  # some of its clips may have been read
    return sums.rows(bad), failed


class _Collected:
    """Adds up the clips of videos, or keeps their time steps."""

    def __init__(self, extractor: Extractor, num_videos: int):
        self._steps, self._length = extractor.steps, extractor.pre.num_frames
        self._count = np.zeros(num_videos, np.int64)
        self._sum = np.zeros((num_videos, 0))
        self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(
        self, values: np.ndarray, video: np.ndarray, start: np.ndarray, stride: np.ndarray, num_frames: np.ndarray
    ) -> None:
        """Adds clips: features (b, D) or (b, T', D); the others (b,)."""
        if not self._steps:
            if not self._sum.size:
                self._sum = np.zeros((len(self._count), values.shape[-1]))
            np.add.at(self._sum, video, values.astype(np.float64))
            np.add.at(self._count, video, 1)
            return
        steps = values.shape[1]
        middle = (np.arange(steps) + 0.5) * self._length / steps - 0.5  # in frames of the clip
        frame = (start[:, None] + middle * stride[:, None]) % num_frames[:, None]
        self._kept.append((values.reshape(-1, values.shape[-1]), np.repeat(video, steps), frame.ravel()))

    def rows(self, without: Sequence[int] = ()) -> Rows:
        """The features of all videos that were read, in their order, except some."""
        if not self._steps:
            self._count[list(without)] = 0
            (video,) = np.nonzero(self._count)
            means = self._sum[video] / self._count[video, None]
            return Rows(means.astype(np.float32), video.astype(np.int32), np.zeros(0, np.float32))
        if not self._kept:
            return Rows(np.zeros((0, 0), np.float32), np.zeros(0, np.int32), np.zeros(0, np.float32))
        values, video, frame = (np.concatenate(column) for column in zip(*self._kept, strict=True))
        keep = ~np.isin(video, list(without))
        return Rows(values[keep], video[keep].astype(np.int32), frame[keep].astype(np.float32))


# -- the file ----------------------------------------------------------------------------------------------------------


def save(path: Path, rows: Rows, videos: Videos, protocol: dict[str, Any]) -> None:
    """Writes an .npz file that `np.load(path, allow_pickle=False)` reads; docs/features.md lists its arrays.

    Args:
      protocol: how they were made, as JSON values; its "layer" becomes an array too.
    """
    per_row = {"names": videos.names, "groups": videos.groups, "sides": videos.sides}
    arrays = {name: np.array(list(values), dtype=np.str_)[rows.video] for name, values in per_row.items()}
    arrays |= {"features": rows.values, "labels": videos.labels[rows.video].astype(np.int32)}
    arrays |= {"classes": np.array(videos.classes, dtype=np.str_), "layer": np.array(protocol["layer"])}
    arrays |= {"protocol": np.array(json.dumps(protocol, sort_keys=True))}
    if rows.frame.size:
        arrays["frame"] = rows.frame
    with disk.replacing(path) as partial:
        np.savez(partial, allow_pickle=False, **arrays)
