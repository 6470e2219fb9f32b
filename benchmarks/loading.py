"""Training clips a second from disk, against the loaders that PyTorch users write.

TensorFlow and torch are imported where they are used: the peer's worker processes import this module as well, and
without a peer there need be no torch.
"""

import contextlib
import functools
import io
import math
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from benchmarks import measure
from r23d_jax.config import DataConfig

BATCH = 8  # clips
NUM_FRAMES, _CROP = 16, 112
_WIDTH, _HEIGHT = 320, 240  # UCF101's
_SMALL_WIDTH, _SMALL_HEIGHT = 171, 128
_QUALITY, _SMALL_QUALITY = 77, 82  # of the JPEGs: about 12 and 5 KB a frame
_FINE_QUALITY = 98  # of the pictures that show the effect of a resize
_SPEED = 2  # pixels from frame to frame
_NOISE = 4.0  # gray levels
_DCT_SCALING = 0.9  # a window of 210 pixels is decoded as 105, and becomes 112
_SHARDS = 2
_SAMPLES = 8  # of memory
_USUAL, _SAME = "torch, PIL, as usual", "torch, PIL, same shortcuts"


def run(rounds: int, workers: int, tiny: bool, peer: bool) -> dict[str, Any]:
    """Measures 16-frame clips of 112x112 pixels, drained from each pipeline in turn.

    Args:
      rounds: how often each pipeline is timed.
      workers: threads of r23d_jax, processes of the peer.
      tiny: few and short videos, to see that it works.
      peer: measure torch's DataLoader too. Its processes are spawned, so the program needs a main guard.

    Returns:
      "rows": of each pipeline "name", "clips_per_second" (median), and how many times as fast it is as the usual peer
      ("ratio_usual": median, "ratio_usual_spread": smallest and largest) and as the peer that takes the same shortcuts
      ("ratio_same": median); null without a peer. "quality": see `_quality`. "memory": "bytes" of this process after
      each of eight epochs of the packed pipeline, and "growth", the last over the first. "work": in words.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1")
    # A multiple of the workers, because each of torch's makes whole batches and would else wait for another at the end.
    num_batches = (1 if tiny else 12) * workers
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        count, num_frames = (6, 20) if tiny else (48, 40)
        print("  writing videos", file=sys.stderr, flush=True)
        sizes = write_videos(root, count, num_frames)
        epoch = math.ceil(count / BATCH)
        candidates: dict[str, Callable[[], object]] = {}
        if peer:
            candidates[_USUAL] = peer_loader(root / "frames", _usual_clip, workers, num_batches)
            candidates[_SAME] = peer_loader(root / "small", _shortcut_clip, workers, num_batches)
        num_steps = (1 + rounds) * num_batches + _SAMPLES * epoch
        drains = {
            name: stack.enter_context(_ours(root, source, part, workers, num_steps, **options))
            for name, source, part, options in (
                ("ours, frames 320x240", "frames", "frames", {}),
                ("ours, frames 320x240, antialias", "frames", "frames", {"antialias": True}),
                ("ours, frames 320x240, dct_scaling", "frames", "frames", {"dct_scaling": _DCT_SCALING}),
                ("ours, frames 171x128", "frames", "small", {}),
                ("ours, packed 171x128", "packed", "packed", {}),
            )
        }
        for name, drain in drains.items():
            candidates[name] = lambda drain=drain: drain(num_batches)
        times = measure.alternate(candidates, rounds)
        held = []
        for _ in range(_SAMPLES):
            drains["ours, packed 171x128"](epoch)
            held.append(measure.memory())
    return {
        "rows": _rows(times, num_batches * BATCH, peer),
        "quality": _quality(),
        "memory": {"bytes": held, "growth": held[-1] / held[0] if held[0] else 1.0},
        "work": {
            "clip": f"{NUM_FRAMES} consecutive frames, {_CROP}x{_CROP} pixels at a short side of {_SMALL_HEIGHT}, "
            "random crop and mirroring",
            "frames 320x240": _size_text(sizes[0]),
            "frames 171x128": _size_text(sizes[1]),
            "videos": f"{count} of {num_frames} frames, made by code, in the page cache",
            "batch": f"{BATCH} clips, {num_batches} batches a timed call",
            "workers": f"{workers} (threads of ours, processes of torch's DataLoader)",
            "ours": "uint8 batches, which the network's first step normalizes",
            _USUAL: "frames 320x240, resized whole, cropped, normalized: float32 batches",
            _SAME: "frames 171x128, crop and resize in one: uint8 batches",
        },
    }


def _rows(times: list[measure.Times], clips: int, peer: bool) -> list[dict[str, Any]]:
    same = next((candidate for candidate in times if candidate.name == _SAME), None)
    rows = []
    for candidate in times:
        rows.append(
            {
                "name": candidate.name,
                "clips_per_second": clips / candidate.median,
                "ratio_usual": candidate.ratio if peer else None,
                "ratio_same": candidate.against(same)[0] if same else None,
                "ratio_usual_spread": list(candidate.spread) if peer else None,
            }
        )
    return rows


def _size_text(frame_bytes: float) -> str:
    return f"JPEG, {frame_bytes / 1024:.1f} KiB a frame, {NUM_FRAMES * frame_bytes / 1024:.0f} KiB a clip"


# -- videos ------------------------------------------------------------------------------------------------------------


def _texture(generator: np.random.Generator, width: int) -> np.ndarray:
    """(240, width, 3) float32 around 128: noise at three scales, the finest of 8 pixels."""
    texture = np.full((_HEIGHT, width, 3), 128, np.float32)
    for size, strength in ((80, 50), (24, 30), (8, 18)):
        coarse = generator.standard_normal((_HEIGHT // size, width // size, 3), np.float32)
        texture += strength * cv2.resize(coarse, (width, _HEIGHT), interpolation=cv2.INTER_CUBIC)
    return texture


def _to_pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def write_videos(root: Path, count: int, num_frames: int, shards: int = _SHARDS) -> tuple[float, float]:
    """Videos of a texture that moves, with noise, such as cameras and codecs leave.

    Makes `lists` with train.csv, `frames` of 320x240, `small` of 171x128, and `packed`, which is `small` in shards.

    Returns:
      Mean bytes of a frame of `frames`, and of `small`.
    """
    from r23d_jax.data.make.jobs import FRAME_NAME
    from r23d_jax.data.make.packed_builder import PackSource, write_packed

    generator = np.random.default_rng(0)
    noise = _NOISE * generator.standard_normal((8, _HEIGHT, _WIDTH, 1), np.float32)
    class_of = {f"v_Moving{video % 2}_g{video:02d}_c01": f"Moving{video % 2}" for video in range(count)}
    (root / "lists").mkdir()
    (root / "lists" / "train.csv").write_text("".join(f"{name},{label}\n" for name, label in class_of.items()))
    sizes = np.zeros(2)
    for name in class_of:
        texture = _texture(generator, _WIDTH + _SPEED * num_frames)
        folders = root / "frames" / name, root / "small" / name
        for folder in folders:
            folder.mkdir(parents=True)
        for number in range(num_frames):
            left = _SPEED * number
            frame = _to_pixels(texture[:, left : left + _WIDTH] + noise[generator.integers(len(noise))])
            reduced = cv2.resize(frame, (_SMALL_WIDTH, _SMALL_HEIGHT), interpolation=cv2.INTER_AREA)
            contents = _jpeg(frame, _QUALITY), _jpeg(reduced, _SMALL_QUALITY)
            for folder, content in zip(folders, contents, strict=True):
                (folder / FRAME_NAME.format(number + 1)).write_bytes(content)
            sizes += [len(content) for content in contents]

    def read(name: str) -> list[bytes]:
        return [path.read_bytes() for path in sorted((root / "small" / name).glob("*.jpg"))]

    sources = [PackSource(name, label, lambda name=name: read(name)) for name, label in class_of.items()]
    write_packed(root / "packed", sources, sorted(set(class_of.values())), num_shards=shards)
    frame_bytes, small_bytes = (sizes / (count * num_frames)).tolist()
    return frame_bytes, small_bytes


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    done, content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError("OpenCV cannot write JPEG")
    return content.tobytes()


# -- ours --------------------------------------------------------------------------------------------------------------


def _ours(
    root: Path, source: str, part: str, workers: int, num_steps: int, **options: Any
) -> contextlib.AbstractContextManager[Callable[[int], float]]:
    cfg = DataConfig(
        source=source,
        root=str(root / part),
        lists=str(root / "lists"),
        num_frames=NUM_FRAMES,
        short_side=_SMALL_HEIGHT,
        crop_size=_CROP,
        crop="random",  # the peer's
        flip=True,
        color_jitter=0.0,
        num_workers=workers,
        **options,
    )
    return draining(cfg, BATCH, num_steps)


@contextlib.contextmanager
def draining(cfg: DataConfig, batch: int, num_steps: int, on_device: bool = False) -> Iterator[Callable[[int], float]]:
    """Gives the function that drains a number of batches from one iterator, which lives as long as the context.

    The function returns the processor time that it took to watch the other threads.
    """
    from r23d_jax.data import sources
    from r23d_jax.data.read import pipeline
    from r23d_jax.data.read.broken import BrokenLog

    broken = BrokenLog(cfg)
    batches = pipeline.train_batches(
        sources.open_index(cfg, "train"),
        cfg,
        seed=0,
        global_batch_size=batch,
        start_step=0,
        num_steps=num_steps + 16,  # so that the last call reads ahead like the others
        broken=broken,
        on_device=on_device,
    )

    def drain(num_batches: int) -> float:
        for _ in range(num_batches):
            video = next(batches)["video"]
            assert video.dtype == np.uint8 and len(video) == batch
            assert on_device or video.shape[1:] == (cfg.num_frames, cfg.crop_size, cfg.crop_size, 3)
        started = time.thread_time()
        until_idle()
        assert not broken.count
        return time.thread_time() - started

    try:
        yield drain
    finally:
        batches.close()


def until_idle() -> None:
    """Returns when no other thread of this process runs or waits for a processor; at once where Linux is not.

    The pipeline keeps a few batches ahead. A call begins with these in place, so it must end with them in place too:
    then it has done the work of as many batches as it drained, and does none in another's time.
    """
    quiet, deadline = 0, time.monotonic() + 60
    while quiet < 3:
        if time.monotonic() > deadline:
            raise RuntimeError("a thread never rests, so prefetching cannot be distinguished from its work")
        time.sleep(0.002)
        quiet = 0 if _others_run() else quiet + 1


def _others_run() -> bool:
    own = str(threading.get_native_id())
    for task in Path("/proc/self/task").glob("*"):
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has ended
            continue
        if task.name != own and state in "RD":
            return True
    return False


# -- the peer ----------------------------------------------------------------------------------------------------------


class _PeerClips:
    """A dataset for torch's DataLoader, which seeds `random` in each of its workers."""

    def __init__(self, root: Path, clip_of: Callable[[list[str]], Any]):
        self._videos = [sorted(map(str, folder.glob("*.jpg"))) for folder in sorted(root.glob("v_*"))]
        self._clip_of = clip_of

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        paths = self._videos[number]
        start = random.randint(0, len(paths) - NUM_FRAMES)
        return self._clip_of(paths[start : start + NUM_FRAMES]), number % 2


def _random_box() -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    left, top = random.randint(0, _SMALL_WIDTH - _CROP), random.randint(0, _SMALL_HEIGHT - _CROP)
    return left, top, left + _CROP, top + _CROP


def _usual_clip(paths: list[str]) -> Any:
    """(3, 16, 112, 112) float32: a few lines in every training script, frame by frame."""
    import torch

    box, flip = _random_box(), random.random() < 0.5
    mean = torch.tensor((0.43216, 0.394666, 0.37645))[:, None, None]
    std = torch.tensor((0.22803, 0.22145, 0.216989))[:, None, None]
    frames = []
    for path in paths:
        with Image.open(path) as file:
            picture = file.convert("RGB").resize((_SMALL_WIDTH, _SMALL_HEIGHT), Image.Resampling.BILINEAR).crop(box)
        if flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        frames.append((pixels.float() / 255 - mean) / std)
    return torch.stack(frames, 1)


def _shortcut_clip(paths: list[str]) -> Any:
    """(16, 112, 112, 3) uint8."""
    import torch

    box, flip = _random_box(), random.random() < 0.5
    clip = np.empty((NUM_FRAMES, _CROP, _CROP, 3), np.uint8)
    for row, path in zip(clip, paths, strict=True):
        with Image.open(path) as file:
            row[:] = np.asarray(file.convert("RGB").resize((_CROP, _CROP), Image.Resampling.BILINEAR, box=box))
    return torch.from_numpy(np.ascontiguousarray(clip[:, :, ::-1]) if flip else clip)


def peer_loader(root: Path, clip_of: Callable[[list[str]], Any], workers: int, num_batches: int) -> Callable[[], None]:
    """A call that drains an epoch of num_batches batches.

    The processes outlive the call, but nothing is read ahead across its end: with two batches ahead for each worker,
    that would be a large part of what is timed, and would take the processors from the next candidate.
    """
    from torch.utils.data import DataLoader, RandomSampler

    clips: Any = _PeerClips(root, clip_of)
    loader = DataLoader(
        clips,
        batch_size=BATCH,
        sampler=RandomSampler(clips, replacement=True, num_samples=num_batches * BATCH),
        num_workers=workers,
        prefetch_factor=2,
        persistent_workers=True,
        multiprocessing_context="spawn",  # fork would copy the threads of TensorFlow
    )

    def drain() -> None:
        count = sum(len(labels) for _, labels in loader)
        assert count == num_batches * BATCH

    return drain


# -- the resize --------------------------------------------------------------------------------------------------------


def _quality() -> list[dict[str, Any]]:
    """How near our reduction from 320x240 to 171x128 comes to PIL's bilinear, which filters.

    Returns:
      Of each way "name", "psnr" and "alias". "psnr": dB against PIL's pixels, on a smooth texture; null for PIL.
      "alias": on rings that grow finer from the centre outwards, take the pixels where the rings are too fine, across
      or down, for the smaller picture; ideally they are an even gray. The RMS of their difference from that gray,
      over the same for PIL.
    """
    import tensorflow as tf

    from r23d_jax.data.read.augment import to_uint8
    from r23d_jax.data.read.decode import decode_windows

    # What `decode_clip` does to a window
    def ours(content: bytes, antialias: bool = False, fewest_pixels: float = math.inf) -> np.ndarray:
        whole = decode_windows([tf.constant(content)], lambda h, w: tf.stack([0, 0, h, w]), False, fewest_pixels)
        return to_uint8(tf.image.resize(whole[0], [_SMALL_HEIGHT, _SMALL_WIDTH], antialias=antialias)).numpy()

    def pil(content: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(content)) as file:
            return np.asarray(file.resize((_SMALL_WIDTH, _SMALL_HEIGHT), Image.Resampling.BILINEAR))

    texture = _jpeg(_to_pixels(_texture(np.random.default_rng(0), _WIDTH)), _FINE_QUALITY)
    rings, too_fine = _zone_plate()
    ways: dict[str, Callable[[bytes], np.ndarray]] = {
        "PIL bilinear": pil,
        "ours": ours,
        "ours, antialias": functools.partial(ours, antialias=True),
        "ours, dct_scaling": functools.partial(ours, fewest_pixels=_DCT_SCALING * _SMALL_HEIGHT),
    }
    remains = {name: _rms(way(_jpeg(rings, _FINE_QUALITY))[too_fine] - 127.5) for name, way in ways.items()}
    rows = []
    for name, way in ways.items():
        error = _rms(way(texture).astype(float) - pil(texture))
        psnr = 20 * math.log10(255 / max(error, 1e-3)) if way is not pil else None
        rows.append({"name": name, "psnr": psnr, "alias": remains[name] / remains["PIL bilinear"]})
    return rows


def _zone_plate() -> tuple[np.ndarray, np.ndarray]:
    """(240, 320, 3) uint8 rings, and (128, 171) bool: where they are too fine for a picture of this size.

    At distance r from the centre the rings have r / 400 periods a pixel, which is the finest there is, 1/2, in the
    corners.
    """

    def offsets(size: int, full: int) -> np.ndarray:
        return (np.arange(size) + 0.5) * full / size - full / 2

    down, across = offsets(_HEIGHT, _HEIGHT)[:, None], offsets(_WIDTH, _WIDTH)
    rings = _to_pixels(127.5 + 127.5 * np.cos(np.pi * (down**2 + across**2) / 400))
    small_down, small_across = offsets(_SMALL_HEIGHT, _HEIGHT)[:, None], offsets(_SMALL_WIDTH, _WIDTH)
    finest_down, finest_across = 0.5 * _SMALL_HEIGHT / _HEIGHT, 0.5 * _SMALL_WIDTH / _WIDTH
    too_fine = (abs(small_down) / 400 > finest_down) | (abs(small_across) / 400 > finest_across)
    return np.repeat(rings[..., None], 3, -1), too_fine


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
