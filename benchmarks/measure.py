"""Times in strict alternation, with a description of the machine."""

import dataclasses
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Times:
    """What one candidate took, in rounds that all candidates share.

    Attributes:
      name: of the candidate.
      seconds: of each round.
      ratios: of each round, the reference's seconds divided by these: above 1 is faster than the reference.
    """

    name: str
    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Median over rounds."""
        return statistics.median(self.ratios)

    def against(self, other: "Times") -> tuple[float, float, float]:
        """Median, smallest and largest of the other's seconds divided by these, round by round."""
        ratios = [base / own for base, own in zip(other.seconds, self.seconds, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest ratio."""
        return min(self.ratios), max(self.ratios)


def alternate(candidates: Mapping[str, Callable[[], object]], rounds: int = 7, warm_up: int = 1) -> list[Times]:
    """Runs A B C A B C ...; the first candidate is the reference.

    A shared machine grows slower and faster by the minute, so only ratios within a round mean much.

    Args:
      candidates: by name; each call must end only when its work is done.
      rounds: how often each is timed.
      warm_up: calls of each beforehand, which compile and fill caches.
    """
    for run in candidates.values():
        for _ in range(warm_up):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
        latest = ", ".join(f"{name} {times[-1]:.3g} s" for name, times in seconds.items())
        print(f"  round {number + 1} of {rounds}: {latest}", file=sys.stderr, flush=True)
    reference = next(iter(seconds.values()))
    return [
        Times(name, tuple(times), tuple(base / own for base, own in zip(reference, times, strict=True)))
        for name, times in seconds.items()
    ]


def environment() -> dict[str, str]:
    """Machine and versions."""
    packages = ("jax", "jaxlib", "flax", "optax", "tensorflow-cpu", "tensorflow", "torch", "torchvision", "pillow")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory() -> int:
    """Bytes of memory that this process holds now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
