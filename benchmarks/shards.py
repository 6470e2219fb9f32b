"""What `data.shuffle_shards` does to the shards that are in use, and to the speed of reading them."""

import collections
import contextlib
import functools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import loading, measure
from r23d_jax.config import DataConfig

_CACHE = 32  # shards
_WINDOWS = (8, 16, 32, 1000)


def run(rounds: int, workers: int, tiny: bool) -> dict[str, Any]:
    """Counts for the size of Kinetics, and measures clips a second from shards on this disk.

    Args:
      rounds: how often each pipeline is timed.
      workers: threads of a pipeline.
      tiny: few and short videos, to see that it works.

    Returns:
      "order": of each window "window", "used" (the most shards in any 1,024 clips), "hits" (share of clips that a
      cache of 32 whole shards, least recently used, has) and "reads" (how often it reads a shard in an epoch).
      "speed": of each window "name", "clips_per_second" (median), "processor" (ms a clip, median: on a busy
      machine it says more), and "ratio" to the order of all videos with its "spread".
    """
    shard = np.repeat(np.arange(100 if tiny else 1000), 24 if tiny else 240)
    batches = (2 if tiny else 24) * workers
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        loading.write_videos(root, *((8, 20) if tiny else (64, 40)), shards=4 if tiny else 16)
        drains = {
            name: stack.enter_context(loading.draining(_config(root, window, workers), 8, (1 + rounds) * batches))
            for name, window in (("all videos", 0), ("shuffle_shards=2", 2))
        }
        used: dict[str, list[float]] = {name: [] for name in drains}

        def drain(name: str) -> None:
            started = time.process_time()
            watched = drains[name](batches)
            used[name].append(time.process_time() - started - watched)

        times = measure.alternate({name: functools.partial(drain, name) for name in drains}, rounds)
    clips = 8 * batches
    speed = [
        {
            "name": one.name,
            "clips_per_second": clips / one.median,
            "processor": 1e3 * statistics.median(used[one.name][1:]) / clips,  # without the first, which warms up
            "ratio": one.ratio,
            "spread": one.spread,
        }
        for one in times
    ]
    return {"order": [_count(shard, window) for window in _WINDOWS], "speed": speed}


def _config(root: Path, window: int, workers: int) -> DataConfig:
    cfg = DataConfig(source="packed", root=str(root / "packed"), lists=str(root / "lists"), num_workers=workers)
    cfg.short_side, cfg.shuffle_shards = 128, window
    return cfg


def _count(shard: np.ndarray, window: int) -> dict[str, float]:
    from r23d_jax.data.read.sampling import windowed_order

    visited = shard[windowed_order(0, 0, shard, window)].tolist()
    cache: collections.OrderedDict[int, None] = collections.OrderedDict()
    missed = 0
    for number in visited:
        missed += number not in cache
        cache[number] = None
        cache.move_to_end(number)
        if len(cache) > _CACHE:
            cache.popitem(last=False)
    used = max(len(set(visited[first : first + 1024])) for first in range(0, len(visited), 256))
    return {"window": window, "used": used, "hits": 1 - missed / len(visited), "reads": missed / len(set(visited))}
