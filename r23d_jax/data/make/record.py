"""The record of settings and finished work that `prepare` keeps beside its results, and its list of broken videos."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from r23d_jax.config import NO_FLOW, Flow, UserError
from r23d_jax.runtime.disk import write_atomically
from r23d_jax.runtime.progress import printable
from r23d_jax.version import __version__

RECORD, BROKEN = "prepare.json", "broken.txt"
FRAMES, PACKED, STAGING = "frames", "packed", ".staging"
# Settings that all results in a folder share
_SETTINGS = ("quality", "short_side", "flow", "flow_bound", "fps")


@dataclasses.dataclass
class Record:
    """The content of `prepare.json`."""

    quality: int  # this and the next four: see `jobs.Job`
    short_side: int
    flow: str
    flow_bound: float
    fps: float
    shards: int  # as given by --shards
    version: str = __version__  # of this package
    videos: int = 0  # number of finished videos
    broken: int = 0  # number of videos that cannot be used
    # Frames per second of every video in a frame folder, by target; 0: not known
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)  # bytes of every video file that was decoded
    packed: list[str] = dataclasses.field(default_factory=list)  # targets of the videos in the shards
    # Target, stamp of the file and reason for every video that Apache Beam's workers could not decode
    left_out: list[tuple[str, list[int | str], str]] = dataclasses.field(default_factory=list)

    def save(self, out: Path) -> None:
        write_atomically(out / RECORD, json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def open_record(out: Path, wanted: Record, *, packs: bool, overwrite: bool) -> Record:
    """Opens the record of earlier runs, or begins one.

    Args:
      wanted: a record without results, with the settings of this run.
      packs: whether this run writes shards.

    Raises:
      UserError: the record is damaged or has other settings, or there are results without a record.
    """
    path = out / RECORD
    made = [out / name for name in (FRAMES, PACKED, STAGING) if (out / name).exists()]
    if made and not path.exists():
        raise UserError(f"{made[0]}: was not made by this command (there is no {path}); use another --out")
    if overwrite or not path.exists():
        for folder in made:
            shutil.rmtree(folder)
        wanted.save(out)
        return wanted
    record = _read(path, wanted)
    old = {name: getattr(record, name) for name in _SETTINGS}
    differ = [f"{name.replace('_', ' ')} {value}" for name, value in old.items() if value != getattr(wanted, name)]
    if differ:
        raise UserError(
            f"--out {out}: was prepared with {', '.join(differ)}; use the same, another --out, or --overwrite to start "
            "again"
        )
    if packs and record.packed and record.shards != wanted.shards:
        raise UserError(f"--out {out}: was packed with --shards {record.shards}; use the same, or --overwrite")
    return record


def _read(path: Path, wanted: Record) -> Record:
    try:
        # old records lack these
        content = {"flow": "", "flow_bound": wanted.flow_bound, "fps": 0.0} | json.loads(path.read_text())
        names = {field.name for field in dataclasses.fields(Record)}
        record = Record(**{name: value for name, value in content.items() if name in names})
        record.packed, record.rates, record.sizes = list(record.packed), dict(record.rates), dict(record.sizes)
        record.left_out = [(str(target), list(stamp), str(why)) for target, stamp, why in record.left_out]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run again with --overwrite") from error
    return record


class Made(NamedTuple):
    """How the frames in a folder were made."""

    flow: Flow = NO_FLOW
    reduced_to: int = 0  # short side of the frames in pixels, if they are not flow; 0: their own size
    rates: Mapping[str, float] = MappingProxyType({})  # frames per second of the videos, by target, where known
    target: str = ""  # of the folder itself


def how_made(folder: Path) -> Made:
    """Reads the record that `prepare` left beside `frames` or `packed`.

    Args:
      folder: one of these two, or a folder in one of them.

    Returns:
      An empty one if there is no record, or a damaged one; it comes with the data and may be forged.
    """
    folder = Path(os.path.abspath(folder))
    for above in folder.parents[:6]:
        path, inside = above / RECORD, folder.relative_to(above).parts
        if not path.is_file() or (len(inside) > 1 and inside[0] not in (FRAMES, PACKED)):
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            flow, reduced_to = NO_FLOW, max(int(content.get("short_side", 0)), 0)
            if content.get("flow"):
                flow, reduced_to = Flow(str(content["flow"]), float(content["flow_bound"]), reduced_to), 0
            rates = {str(name): float(rate) for name, rate in content.get("rates", {}).items()}
        except (OSError, ArithmeticError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return Made()
        rates = {name: rate for name, rate in rates.items() if 0 < rate < math.inf}
        return Made(flow, reduced_to, rates, "/".join(inside[1:]))
    return Made()


def write_broken(out: Path, broken: dict[str, str], before: int) -> None:
    """Lists the files that cannot be used, with the reasons, in `broken.txt`.

    It is removed if there are none now, and an earlier run had listed some (`before`).
    """
    path = out / BROKEN
    if broken:
        write_atomically(path, "".join(f"{printable(video)}\t{printable(broken[video])}\n" for video in sorted(broken)))
    elif before:
        path.unlink(missing_ok=True)
