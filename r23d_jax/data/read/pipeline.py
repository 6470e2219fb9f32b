"""Videos on disk -> batches of numpy arrays, with tf.data.

A training sample is a pure function of (seed, epoch, video). A pipeline that starts at step k therefore continues one
that started at step 0, and hosts that each read their own rows give together what one host would give.

After the first read error the pipeline switches to a slower mode: each row is the first readable one of a few videos,
the one that is due and substitutes drawn with its key. The batch records which one that was, and `BrokenLog` diagnoses
each unreadable video once. Without unreadable videos both modes give the same batches.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from r23d_jax.config import ConfigError, DataConfig, look_up, preprocessing, validate
from r23d_jax.data.find.directions import mirrors
from r23d_jax.data.find.frames import PackedFrames, VideoIndex
from r23d_jax.data.read import augment, motion, sampling
from r23d_jax.data.read.batches import BatchIterator, Sample, dataset_maker, first_readable
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.data.read.decode import Plan, decode_parts, decode_windows, frame_reader, read_clip, resize, to_canvas
from r23d_jax.data.read.views import Views, video_strides

ALTERNATIVES = 4  # substitutes tried for a video that cannot be read
# Bytes of an array for the device. glibc returns what is larger than 64 MiB to the system, which zeroes it for the next
# batch: then 128 clips of 16 x 128 x 128 were put together at less than half the speed.
MOST_BYTES = 56 << 20
_FRAMES, _WINDOW, _REPEAT, _MOTION = 0, 1, 2, 3  # folded into a clip's key; augmentations fold in their names


def train_batches(
    index: VideoIndex,
    cfg: DataConfig,
    *,
    seed: int,
    global_batch_size: int,
    start_step: int,
    num_steps: int,
    host: int = 0,
    num_hosts: int = 1,
    broken: BrokenLog,
    on_device: bool = False,
) -> BatchIterator:
    """Training batches of one host.

    A step reads n = global_batch_size / repeats clips. Global sample g = step * n + i belongs to epoch g // N and to
    host i // (n / num_hosts). An epoch visits every video once, in the order of `sampling.epoch_order` or, with
    `shuffle_shards`, of `sampling.windowed_order`; batches go across its end, and nothing is dropped. Each sample gives
    `repeats` rows, next to each other, which differ in their augmentations.

    Args:
      index: N videos.
      global_batch_size: clips in a step, over all hosts.
      on_device: leave resizing and augmentations to `models.augment.finish_clips`. A batch then has "video"
        (b / k, t, h, w, c) uint8 with k = repeats, of `augment.canvas_size` (h, w), which has every window somewhere
        in it; all others as (b / k, k, ...); and also "window" (b / k, k, 4) int32 and the numbers of
        `augment.draw_numbers`. A window that is larger than the canvas is resized here. If "video" would have more than
        `MOST_BYTES`, the later frames are in "video_1", "video_2" and so on. With `cfg.motion`, it has the pictures and
        numbers of `motion.moving_clips` instead.

    Returns:
      An iterator over batches
      {"video": (b, t, s, s, c) uint8, "label": (b,) int32, "mask": (b,) float32 of ones, "video_id": (b,) int32}, with
      b = global_batch_size / num_hosts, t = read_frames, s = crop_size, c = 3, or 2 for optical flow. Arrays may be
      read-only.

    Raises:
      ConfigError: a setting is wrong, or some do not go together.
      BrokenVideoError: while iterating; see `BrokenLog`.
    """
    _hide_gpus()
    validate(cfg)
    cfg = dataclasses.replace(cfg, flip=mirrors(cfg.flip, index.class_names))
    rows = _rows_per_host(global_batch_size, host, num_hosts, "train.global_batch_size", cfg.repeats) // cfg.repeats
    samples = rows * num_hosts
    num_videos = len(index.names)
    reader = frame_reader(index.frames)
    num_frames, labels = tf.constant(index.num_frames, tf.int32), tf.constant(index.labels, tf.int32)
    strides = tf.constant(video_strides(index, cfg), tf.float64)
    attempts = 1 + (ALTERNATIVES if cfg.on_broken == "skip" else 0)
    reading = motion.picture_config(cfg) if cfg.motion.speeds else cfg
    together = max(1, MOST_BYTES // (rows * frame_bytes(cfg))) if on_device else 0

    def frames_of(video: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        return sampling.training_frames(reading, sampling.fold_in(key, _FRAMES), num_frames[video], strides[video])

    def place(counter: Any) -> tuple[Any, Any]:
        """Epoch and position of this host's sample number `counter`, a tensor or an array."""
        number = (counter // rows) * samples + host * rows + counter % rows
        return number // num_videos, number % num_videos

    @functools.lru_cache(maxsize=2)
    def windowed_order(epoch: int) -> np.ndarray:
        assert isinstance(index.frames, PackedFrames), "shuffle_shards is refused for other sources"
        return sampling.windowed_order(seed, epoch, index.frames.shard, cfg.shuffle_shards)

    def windowed(counters: np.ndarray) -> np.ndarray:
        return np.array([windowed_order(int(epoch))[at] for epoch, at in zip(*place(counters), strict=True)])

    def plan(counter: tf.Tensor, wanted: tf.Tensor | None = None) -> Plan:
        epoch, position = place(counter)
        if wanted is None:
            wanted = sampling.epoch_order(seed, epoch, position, num_videos)
        key = sampling.sample_key(seed, epoch, wanted)
        others = sampling.pick(sampling.uniform(key, attempts - 1), tf.constant(num_videos))
        tried = tf.concat([tf.cast(wanted, tf.int32)[None], others], 0)
        frames = frames_of(tried[0], sampling.fold_in(key, 0))
        return {"key": key, "tried": tried, "video": tried[0], "frames": frames}

    def sample(plan: Plan, substitute: bool) -> Sample:
        tried = plan["tried"]

        def attempt(which: tf.Tensor) -> Sample:
            # A key for each, so that a substitute shows another clip here than in its own turn.
            key = sampling.fold_in(plan["key"], which)
            if not substitute:
                return _training_clip(cfg, reader.open(plan), key, together)
            video = tried[which]
            contents = tf.cond(
                which == 0, lambda: reader.open(plan), lambda: read_clip(reader, video, frames_of(video, key))
            )
            return _training_clip(cfg, contents, key, together)

        if substitute:
            clip, delivered = first_readable(attempt, attempts)
        else:
            clip, delivered = attempt(tf.constant(0)), tf.constant(0)
        video_id = tried[tf.minimum(delivered, attempts - 1)]
        same = {"label": labels[video_id], "mask": tf.constant(1.0), "video_id": video_id}
        same |= {"tried": tried, "delivered": delivered}
        repeated = {name: tf.stack(cfg.repeats * [value]) for name, value in same.items()}
        return clip | repeated | ({"label": tf.constant(motion.labels_of(cfg))} if cfg.motion.speeds else {})

    group = 0 if on_device else cfg.repeats
    end, choose = start_step + num_steps, windowed if cfg.shuffle_shards else None
    make = dataset_maker(plan, reader, sample, rows, start_step, end, cfg, group, choose)
    return BatchIterator(make, num_steps, lambda *seen: broken.observe(index, *seen, replaced=True), reader)


def eval_batches(
    index: VideoIndex,
    views: Views,
    cfg: DataConfig,
    *,
    batch_size: int,
    host: int = 0,
    num_hosts: int = 1,
    broken: BrokenLog,
    crops: int = 0,
    canvas: tuple[int, int] | None = None,
) -> BatchIterator:
    """Evaluation batches of one host, in the order of the views.

    Host h reads rows h * b .. (h + 1) * b of every global batch, with b = batch_size / num_hosts. The last batch is
    padded with rows of mask 0 (video, label, video_id and view are 0 there), so every host gives the same number of
    batches of one shape. A view that cannot be read has mask 0 too, but keeps its numbers.

    If b is a multiple of the number of crops k, a clip is decoded once for all of them.

    Args:
      index, cfg, host, num_hosts, broken: as in `train_batches`.
      batch_size: views in a batch, over all hosts.
      crops: crops of a clip, a key of `augment.EVAL_CROPS`; 0: as many as `views` has.
      canvas: leave the crops to `models.augment.finish_clips`; b must be a multiple of k. A batch then has "video"
        (b / k, t, *canvas, c) with whole frames, which the canvas must hold, and all others as (b / k, k, ...), also
        "window" and "flip" as in `train_batches`.

    Returns:
      An iterator over batches as `train_batches` gives, and "view": (b,) int32, the row in `views`.

    Raises:
      ConfigError: a setting is wrong, or some do not go together.
      BrokenVideoError: while iterating; see `BrokenLog`.
    """
    _hide_gpus()
    validate(cfg)
    rows = _rows_per_host(batch_size, host, num_hosts, "eval.batch_size")
    num_views = len(views.video)
    crops = crops or int(views.crop.max(initial=0)) + 1
    look_up(augment.EVAL_CROPS, crops, "config.eval.crops")
    whole_clips = num_views % crops == 0 and np.array_equal(views.crop, np.tile(np.arange(crops), num_views // crops))
    group = crops if whole_clips and rows % crops == 0 else 1  # views that are read together
    if canvas is not None and group != crops:
        raise ValueError(f"{rows} views of a host are no whole clips of {crops} crops, so no device can cut them")
    reader, clip_views = frame_reader(index.frames), _eval_loader(cfg, crops, group > 1, canvas)
    length = 1 if cfg.motion.speeds else preprocessing(cfg).read_frames
    num_frames, strides = tf.constant(index.num_frames, tf.int32), tf.constant(video_strides(index, cfg), tf.float64)
    labels = tf.constant(index.labels, tf.int32)
    columns = [tf.constant(column, tf.int32) for column in (views.video, views.start, views.crop)]
    groups = rows // group

    def plan(counter: tf.Tensor) -> Plan:
        number = (counter // groups) * batch_size + host * rows + tf.math.floormod(counter, groups) * group
        real = number < num_views
        row = tf.cast(tf.where(real, number, 0), tf.int32)
        video, start, crop = (column[row] for column in columns)
        frames = sampling.consecutive_frames(start, num_frames[video], length=length, stride=strides[video])
        return {"real": real, "row": row, "video": video, "crop": crop, "frames": frames}

    def sample(plan: Plan, substitute: bool) -> Sample:
        real, row, video_id = plan["real"], plan["row"], plan["video"]

        def load(_: tf.Tensor) -> Sample:
            if cfg.motion.speeds:
                return _evaluated_motion(cfg, reader.open(plan), labels[video_id], row)
            return clip_views(reader.open(plan), plan["crop"])

        if substitute:
            # No attempts for padding: there is nothing to decode.
            clip, delivered = first_readable(load, tf.cast(real, tf.int64))
        else:
            clip = load(row)
            clip = tf.cond(real, lambda: clip, lambda: tf.nest.map_structure(tf.zeros_like, clip))
            delivered = tf.constant(0)

        def each(value: tf.Tensor) -> tf.Tensor:
            return tf.fill((group,), value)

        return clip | {
            "label": each(tf.where(real, labels[video_id], 0)),
            "mask": each(tf.cast(real & (delivered == 0), tf.float32)),
            "video_id": each(tf.where(real, video_id, 0)),
            "view": tf.where(real, row + tf.range(group), 0),
            "tried": tf.fill((group, 1), video_id),
            "delivered": each(tf.where(real, delivered, -1)),
        }

    num_batches = -(-num_views // batch_size)
    flattened = 0 if canvas is not None else group
    make = dataset_maker(plan, reader, sample, groups, 0, num_batches, cfg, flattened)
    return BatchIterator(make, num_batches, lambda *seen: broken.observe(index, *seen, replaced=False), reader)


def frame_bytes(cfg: DataConfig) -> int:
    """Bytes of a frame for the device."""
    return math.prod(augment.canvas_size(cfg)) * (2 if cfg.input == "flow" else 3)


def _training_clip(cfg: DataConfig, contents: list[tf.Tensor], key: tf.Tensor, together: int) -> Sample:
    """The k = repeats rows of a clip, cropped and augmented by the key: "video" (k, t, s, s, c) uint8.

    If `together` is not 0, it is for the device: "video", "video_1" and so on, each with that many of the t frames or
    the rest, (frames, h, w, c) on a canvas, "window" (k, 4), and numbers of augmentations.
    """
    if cfg.motion.speeds:
        picture = _training_clip(motion.picture_config(cfg), contents, key, 0)["video"][0]
        return motion.moving_clips(cfg, picture, sampling.fold_in(key, _MOTION), motion.labels_of(cfg), together > 0)
    draws = sampling.uniform(sampling.fold_in(key, _WINDOW), augment.WINDOW_DRAWS)
    canvas = augment.canvas_size(cfg)
    windows, window = decode_parts(
        contents,
        lambda height, width: augment.training_window(cfg, draws, height, width),
        cfg.input == "flow",
        cfg.dct_scaling * cfg.crop_size or math.inf,
        canvas if together else None,
    )
    repeat = sampling.fold_in(key, _REPEAT)
    keys = [key, *(sampling.fold_in(repeat, number) for number in range(1, cfg.repeats))]
    numbers = [augment.draw_numbers(cfg, key) for key in keys]

    # On the host too, so that a clip is the same wherever it is augmented
    size, whole = cfg.crop_size, tf.constant([0, 0, cfg.crop_size, cfg.crop_size])
    fits = tf.reduce_all(tf.shape(windows)[1:3] <= canvas)
    windows, window = tf.cond(fits, lambda: (windows, window), lambda: (resize(windows, size, cfg.antialias), whole))
    if not together:
        clip = resize(windows, size, cfg.antialias, rounded=not augment.changes_colors(cfg))
        return {"video": tf.stack([augment.augment_clip(drawn, clip) for drawn in numbers])}
    video = to_canvas(windows, *canvas)
    frames = [video[at : at + together] for at in range(0, len(contents), together)]
    sample = {f"video_{part}" if part else "video": some for part, some in enumerate(frames)}
    sample["window"] = tf.stack(cfg.repeats * [window])
    return sample | {name: tf.stack([drawn[name] for drawn in numbers]) for name in numbers[0]}


def _evaluated_motion(cfg: DataConfig, contents: list[tf.Tensor], label: tf.Tensor, row: tf.Tensor) -> Sample:
    """The clip of a view, which depends on nothing but its row: "video" (1, t, s, s, 3) uint8. Colors do not change."""
    plain = dataclasses.replace(cfg, color_jitter=0.0, motion=dataclasses.replace(cfg.motion, gray=0.0))
    picture = _eval_loader(motion.picture_config(cfg), 1, False, None)(contents, tf.constant(0))["video"][0]
    key = sampling.fold_in(tf.zeros(2, tf.int64), row)
    return motion.moving_clips(plain, picture, key, [label], on_device=False)


def _eval_loader(
    cfg: DataConfig, crops: int, together: bool, canvas: tuple[int, int] | None
) -> Callable[[list[tf.Tensor], tf.Tensor], Sample]:
    """(encoded frames, crop) -> "video" (1, t, s, s, c) uint8: this crop; with `together`, (crops, t, s, s, c).

    With a canvas: "video" (t, *canvas, c), "window" (crops, 4) and "flip" (crops,).
    """
    flow = cfg.input == "flow"

    def finish(windows: tf.Tensor, crop: tf.Tensor) -> tf.Tensor:
        return augment.mirror(resize(windows, cfg.crop_size, cfg.antialias), augment.is_mirrored(crops, crop))

    def load(contents: list[tf.Tensor], crop: tf.Tensor) -> Sample:
        if crops == 1:
            fewest = cfg.dct_scaling * cfg.crop_size or math.inf
            windows = decode_windows(contents, lambda h, w: augment.eval_window(cfg, crops, crop, h, w), flow, fewest)
            return {"video": finish(windows, crop)[None]}
        # The whole frame is decoded even for one crop: a window decoded alone has other colors at its edges, and a view
        # must not depend on its batch.
        fewest = cfg.dct_scaling * cfg.short_side or math.inf
        whole = decode_windows(contents, lambda h, w: tf.stack([0, 0, h, w]), flow, fewest)
        numbers = list(map(tf.constant, range(crops))) if together else [crop]
        high, wide = tf.shape(whole)[1], tf.shape(whole)[2]
        windows = [augment.eval_window(cfg, crops, number, high, wide) for number in numbers]
        if canvas is not None:
            mirrored = tf.stack([augment.is_mirrored(crops, number) for number in numbers])
            return {"video": to_canvas(whole, *canvas), "window": tf.stack(windows), "flip": mirrored}
        cut = []
        for number, window in zip(numbers, windows, strict=True):
            top, left, height, width = tf.unstack(window)
            cut.append(finish(whole[:, top : top + height, left : left + width], number))
        return {"video": tf.stack(cut)}

    return load


def _rows_per_host(batch_size: int, host: int, num_hosts: int, name: str, repeats: int = 1) -> int:
    if batch_size % (num_hosts * repeats):
        repeated = f", times data.repeats={repeats}" if repeats > 1 else ""
        wanted = f"the number of hosts, {num_hosts}{repeated}"
        raise ConfigError(f"config.{name}={batch_size}: must be a multiple of {wanted}")
    if not 0 <= host < num_hosts:
        raise ValueError(f"host={host}: must be 0 .. {num_hosts - 1}")
    return batch_size // num_hosts


def _hide_gpus() -> None:
    """Hides GPUs from TensorFlow, which only reads data here but would reserve the GPU's memory."""
    with contextlib.suppress(RuntimeError):  # TensorFlow is in use already, and its devices can no longer be changed
        tf.config.set_visible_devices([], "GPU")
