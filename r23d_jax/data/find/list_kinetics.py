"""Kinetics' lists: `train.csv` and `val.csv` (`validate.csv`, `kinetics-600_val.csv`, ...).

The columns are `label,youtube_id,time_start,time_end` and others. A clip is named `ID_000010_000020`, with the seconds
of its start and end, or `ID` alone by some tools that download it.
"""

import csv
import io
from collections import Counter
from pathlib import Path

from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.list_csv import is_kinetics
from r23d_jax.data.find.list_format import (
    Listed,
    ListFormat,
    Sides,
    Subset,
    by_name,
    choose_file,
    read_text,
    refuse_escape,
    relative_parts,
    shown,
)

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_NAME = r"(?:.*[-_])?(?:{})\.csv"
# The test list of Kinetics comes without labels; where it has them, the validation list is still preferred.
_FILES = {"train": ("train",), "test": ("val|validate|validation", "test")}


def _read(lists: Path, subset: Subset, split: int) -> Sides:
    del split  # there is one
    rows: dict[str, list[tuple[str, str, str, str]]] = {}
    for side, names in _FILES.items():
        found = (choose_file(lists, _NAME.format(name), f"the {side} videos") for name in names)
        path = next(filter(None, found), None)
        if path is not None:
            rows[side] = _read_rows(path)
        elif side == subset:
            raise DataError(
                f"{lists}: holds no {names[0].split('|')[0]}.csv of Kinetics, which lists the {side} videos"
            )
    # An id with several clips does not tell which one a file named by it is.
    clips = Counter(youtube_id for side in rows.values() for _, youtube_id, _, _ in side)
    sides = {
        side: [
            Listed(
                clip,
                clip,
                label,
                where,
                ids=(clip, youtube_id) if clips[youtube_id] == 1 else (clip,),
                film=youtube_id,
            )
            for clip, youtube_id, label, where in side_rows
        ]
        for side, side_rows in rows.items()
    }
    return tuple(sorted({video.class_name for side in sides.values() for video in side})), sides


def _read_rows(path: Path) -> list[tuple[str, str, str, str]]:
    """Reads (clip, YouTube id, label, place) from every row."""
    rows = []
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True, skipinitialspace=True)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        lacking = [name for name in _COLUMNS if name not in reader.fieldnames]
        if lacking:
            raise DataError(f"{path}: has no column {lacking[0]!r} (a test list without labels cannot be used)")
        for row in reader:
            where = f"{path.name}:{reader.line_num}"
            label, youtube_id = ((row[name] or "").strip() for name in ("label", "youtube_id"))
            try:
                start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
            except (TypeError, ValueError, OverflowError):
                start, end = -1, -1
            if not label or not youtube_id or start < 0 or end < 0 or "/" in youtube_id:
                raise DataError(
                    f"{where}: malformed line {shown(str(list(row.values())))}; expected a label, a YouTube "
                    "id, and the seconds of its start and end"
                )
            refuse_escape(label, where)
            relative_parts(youtube_id, where)
            rows.append((f"{youtube_id}_{start:06d}_{end:06d}", youtube_id, label, where))
    except csv.Error as error:
        raise DataError(f"{path.name}:{reader.line_num}: not CSV: {error}") from error
    if not rows:
        raise DataError(f"{path}: lists no video")
    return rows


KINETICS = ListFormat(
    example="train.csv of Kinetics",
    find=by_name(_NAME.format("train|val|validate|validation|test"), is_kinetics),
    read=_read,
)
