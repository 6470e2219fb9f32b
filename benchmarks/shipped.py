"""Loading for the shipped configs as they are, against torchvision's transforms and against decoding alone.

The host's half is measured: with `augment_on=device` it reads and decodes, and leaves the rest to the compiled step.
torchvision's training preset for videos (crop, flip, to floats, normalize) runs in torch's DataLoader with the
augmentations of these configs: a square of one of their scales instead of a scaled frame's crop, and color jitter.
"""

import contextlib
import functools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import loading
from r23d_jax.config import Config
from r23d_jax.config.files import call_file

CONFIGS = ("r23d", "r2plus1d")
MOST_PROCESSOR_TIME = 1.25  # of decoding alone, with augment_on=device
_CONFIG_FOLDER = Path(__file__).parents[1] / "configs"
_PEER, _DECODING = "torch, torchvision's preset", "TensorFlow, decoding alone"
_BATCH = 64  # clips, the configs' own


def run(rounds: int, workers: int, tiny: bool, peer: bool) -> dict[str, Any]:
    """Measures both configs with augmentations on the host and on the device.

    Args:
      rounds: how often each is timed, in alternation.
      workers: threads of r23d_jax, processes of the peer.
      tiny: few and short videos, to see that it works.
      peer: measure torch's DataLoader too; torchvision must be installed.

    Returns:
      "rows": of each "name", "clips_per_second", "processor" (ms of processor time a clip; null for the peer, whose
      processes are its own), "ratio_peer" (how many times as fast as the peer; null without one) and "ratio_decoding"
      (processor time, decoding the same frames = 1); medians, ratios within a round. "work": in words.
    """
    count, num_frames, num_batches = (8, 20, 1) if tiny else (48, 40, 4)
    clips = _BATCH * num_batches
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        sizes = loading.write_videos(root, count, num_frames)
        candidates: dict[str, Callable[[], float | None]] = {_DECODING: _decoding(root / "small", clips)}
        if peer:
            data = _config("r23d").data
            clip_of = functools.partial(_preset_clip, data.crop_size, data.crop_scales, data.color_jitter)
            candidates[_PEER] = loading.peer_loader(root / "small", clip_of, workers, clips // loading.BATCH)
        for name in CONFIGS:
            for place in ("host", "device"):
                drain = stack.enter_context(_ours(root, name, place, workers, (2 + rounds) * num_batches))
                candidates[f"configs/{name}.py, augment_on={place}"] = functools.partial(drain, num_batches)
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
        for number in range(-1, rounds):  # the first round warms up
            for name, call in candidates.items():
                wall, processor = time.perf_counter(), time.process_time()
                watching = call() or 0.0
                seconds = time.perf_counter() - wall, time.process_time() - processor - watching
                if number >= 0:
                    measured[name].append(seconds)
            print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    rows = []
    for name, times in measured.items():

        def ratio(reference: str, part: int, times: list = times) -> float:
            return statistics.median(a[part] / b[part] for a, b in zip(measured[reference], times, strict=True))

        processor = statistics.median(seconds for _, seconds in times) / clips * 1e3
        rows.append(
            {
                "name": name,
                "clips_per_second": clips / statistics.median(wall for wall, _ in times),
                "processor": None if name == _PEER else processor,
                "ratio_peer": ratio(_PEER, 0) if peer else None,
                "ratio_decoding": None if name == _PEER else 1 / ratio(_DECODING, 1),
            }
        )
    frames = f"JPEG, {sizes[1] / 1024:.1f} KiB a frame"
    work = {
        "frames": f"171x128, {frames}",
        "batch": f"{_BATCH} clips, {num_batches} a timed call",
        "workers": str(workers),
    }
    return {"rows": rows, "work": work}


def _config(name: str) -> Config:
    return call_file(str(_CONFIG_FOLDER / f"{name}.py"), "get_config", Config, "")


def _ours(
    root: Path, name: str, place: str, workers: int, num_steps: int
) -> contextlib.AbstractContextManager[Callable[[int], float]]:
    cfg = _config(name).data
    cfg.root, cfg.lists, cfg.num_workers = str(root / "small"), str(root / "lists"), workers
    return loading.draining(cfg, _BATCH, num_steps, on_device=place == "device")


def _decoding(root: Path, clips: int) -> Callable[[], None]:
    """A call that decodes 16 whole frames for each of a number of clips, from memory, and does nothing else."""
    import tensorflow as tf

    videos = [sorted(folder.glob("*.jpg"))[: loading.NUM_FRAMES] for folder in sorted(root.glob("v_*"))]
    contents = tf.constant([[path.read_bytes() for path in video] for video in videos])

    @tf.autograph.experimental.do_not_convert
    def decode(clip: tf.Tensor) -> tf.Tensor:
        frames = [tf.io.decode_jpeg(frame, 3, dct_method="INTEGER_ACCURATE") for frame in tf.unstack(clip)]
        return tf.stack([frame[0, 0, 0] for frame in frames])

    endless = tf.data.Dataset.from_tensor_slices(contents).repeat().map(decode, num_parallel_calls=1)
    decoded = iter(endless)

    def run() -> None:
        for _ in range(clips):
            next(decoded)

    return run


def _preset_clip(size: int, scales: tuple[float, ...], jitter: float, paths: list[str]) -> Any:
    """(3, 16, size, size) float32: torchvision's transforms in the order of its training preset."""
    import torch
    from torchvision.transforms import v2

    frames = []
    for path in paths:
        with Image.open(path) as file:
            frames.append(torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1))
    clip = torch.stack(frames)
    side = int(random.choice(scales) * min(clip.shape[-2:]))
    change = v2.Compose(
        [
            v2.RandomCrop(side),
            v2.Resize((size, size), antialias=False),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(jitter, jitter, jitter),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
        ]
    )
    return change(clip).permute(1, 0, 2, 3)
