"""What `data.shuffle_shards` does to the shards that are in use, and how fast they are read, also from an S3 server.

The server is that of tests/remote, in processes of their own on a core of their own, and waits before every answer.
Without its packages (requirements-remote.txt, and moto[server]) shards are read from this disk alone.
"""

import collections
import contextlib
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import loading, measure
from r23d_jax.config import DataConfig

_BATCH = 8  # clips
_CACHE = 32  # shards
_WINDOWS = (8, 16, 32, 1000)
_DELAY = 0.01  # seconds before every answer of the server
_JITTER = 0.2  # color jitter of configs/r23d.py


def run(rounds: int, tiny: bool) -> dict[str, Any]:
    """Counts for the size of Kinetics, and measures clips a second.

    Args:
      rounds: how often each pipeline is timed.
      tiny: few and short videos, to see that it works.

    Returns:
      "order": of each window "window", "used" (the most shards in any 1,024 clips), "hits" (share of clips that a
      cache of 32 whole shards, least recently used, has) and "reads" (how often it reads a shard in an epoch).
      "speed": of each pipeline "name", "clips_per_second" (median), "processor" (ms a clip, median: on a busy
      machine it says more), "requests" a clip, and "ratio" to the first with its "spread".
    """
    shard = np.repeat(np.arange(100 if tiny else 1000), 24 if tiny else 240)
    batches = 2 if tiny else 24
    cores = os.sched_getaffinity(0)
    far = all(importlib.util.find_spec(name) for name in ("moto", "flask", "s3fs")) and len(cores) > 1
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        videos, frames, shards = (8, 20, 4) if tiny else (48, 100, 16)
        frame_bytes = loading.write_videos(root, videos, frames, shards=shards)[1]
        asked = stack.enter_context(_server(root, max(cores))) if far else None
        if far:
            os.sched_setaffinity(0, cores - {max(cores)})
            stack.callback(os.sched_setaffinity, 0, cores)

        def draining(place: object, window: int, **more: Any) -> Callable[[int], float]:
            cfg = DataConfig(source="packed", root=f"{place}/packed", lists=str(root / "lists"), **more)
            cfg.short_side, cfg.shuffle_shards, cfg.num_workers = 128, window, len(os.sched_getaffinity(0))
            return stack.enter_context(loading.draining(cfg, _BATCH, (1 + rounds) * batches))

        drains = {"this disk, all videos": draining(root, 0), "this disk": draining(root, 2)}
        jittered = {"this disk": draining(root, 2, color_jitter=_JITTER)}
        if far:
            # Of two windows: a cache that holds no more has no shard in the next epoch
            small = 2 * 2 * videos / shards * frames * frame_bytes / 1e9
            drains["S3, a cache of two windows"] = draining(URL, 2, remote_cache=small)
            jittered["S3, a cache of two windows"] = draining(URL, 2, remote_cache=small, color_jitter=_JITTER)
            os.environ["R23D_CACHE"] = f"{folder}/all"
            drains["S3, a cache of all shards"] = draining(URL, 2)
            drains["S3, a cache of all shards"](-(-videos // _BATCH))
        speed = _measure(drains, rounds, batches, asked)
        speed += _measure({f"{name}, color jitter": drain for name, drain in jittered.items()}, rounds, batches, asked)
    return {"order": [_count(shard, window) for window in _WINDOWS], "speed": speed}


def _measure(
    drains: dict[str, Callable[[int], float]], rounds: int, batches: int, asked: Callable[[], int] | None
) -> list[dict[str, Any]]:
    used: dict[str, list[float]] = {name: [] for name in drains}
    requests = dict.fromkeys(drains, 0)

    def drain(name: str) -> None:
        before, started = asked() if asked else 0, time.process_time()
        watched = drains[name](batches)
        used[name].append(time.process_time() - started - watched)
        requests[name] += (asked() if asked else 0) - before

    times = measure.alternate({name: functools.partial(drain, name) for name in drains}, rounds)
    clips = _BATCH * batches
    return [
        {
            "name": one.name,
            "clips_per_second": clips / one.median,
            "processor": 1e3 * statistics.median(used[one.name][1:]) / clips,  # without the first, which warms up
            "requests": requests[one.name] / clips / len(used[one.name]),
            "ratio": one.ratio,
            "spread": one.spread,
        }
        for one in times
    ]


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


# -- the server --------------------------------------------------------------------------------------------------------

URL = "s3://videos/set"


@contextlib.contextmanager
def _server(root: Path, core: int) -> Iterator[Callable[[], int]]:
    """Copies `packed` to a server on one core; gives the function that counts its requests.

    This process then finds the server, and keeps what it reads in `root`.
    """
    from r23d_jax.data import sources

    sources.open_index(DataConfig(source="packed", root=f"{root}/packed", lists=f"{root}/lists"), "train")  # saves it
    command = [sys.executable, "-m", "benchmarks.shards", str(root / "packed"), str(core)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], **pipes) as process:
        read, write = process.stdout, process.stdin
        assert read and write
        before = dict(os.environ)
        os.environ |= json.loads(read.readline()) | {"R23D_CACHE": f"{root}/small"}

        def asked() -> int:
            write.write("\n")
            return int(read.readline())

        try:
            yield asked
        finally:
            write.close()
            os.environ.clear()
            os.environ.update(before)


def _serve(folder: Path) -> None:
    """In a process of its own: ends with its standard input, and answers each line with the number of requests."""
    from tests.remote.server import Faults, s3_server

    with s3_server() as server:
        server.upload(folder, "set/packed")
        server.faults = Faults(delay=_DELAY)
        print(json.dumps(server.env), flush=True)
        for _ in sys.stdin:
            print(len(server.asked), flush=True)


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[2])})
    _serve(Path(sys.argv[1]))
