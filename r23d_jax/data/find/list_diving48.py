"""Diving48's lists: `Diving48_V2_train.json` and `Diving48_V2_test.json`, or those of version 1 without `V2_`.

An item has a `vid_name` and a `label`, from 0. An optional `Diving48_vocab.json` names the classes, each as a list of
four parts, such as `["Back", "15som", "05Twis", "FREE"]`. Without it a class is named by its number.
"""

import re
from pathlib import Path

from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.list_format import (
    Listed,
    ListFormat,
    Sides,
    Subset,
    by_name,
    choose_file,
    items,
    read_json,
    refuse_escape,
    relative_path,
    shown,
)

_NUMBER = re.compile(r"[0-9]{1,3}")
_NAME = r"Diving48_(?:V[0-9]_)?{}\.json"


def _read(lists: Path, subset: Subset, split: int) -> Sides:
    del split  # there is one
    rows = {}
    for side in ("train", "test"):
        path = choose_file(lists, _NAME.format(side), f"the {side} videos")
        if path is not None:
            rows[side] = [(where, name, label) for where, _, (name, label) in items(path, "vid_name label")]
        elif side == subset:
            raise DataError(f"{lists / f'Diving48_V2_{side}.json'}: no such file; it lists the {side} videos")
    vocabulary = choose_file(lists, r"Diving48_(?:V[0-9]_)?vocab\.json", "the classes")
    numbers = [int(label) for side in rows.values() for _, _, label in side if _NUMBER.fullmatch(label)]
    count = range(max(numbers, default=0) + 1)
    class_names = tuple(map(str, count)) if vocabulary is None else _read_classes(vocabulary)
    sides: dict[str, list[Listed]] = {}
    for side, side_rows in rows.items():
        sides[side] = []
        for where, name, label in side_rows:
            if not _NUMBER.fullmatch(label) or int(label) >= len(class_names):
                raise DataError(f"{where}: label {shown(label)}; expected a number from 0 to {len(class_names) - 1}")
            name = relative_path(name, where)
            class_name = class_names[int(label)]
            film = name.rpartition("_")[0] or name  # an id of YouTube and a number
            sides[side].append(Listed(name, name, class_name, where, ids=(name,), film=film))
    return class_names, sides


def _read_classes(path: Path) -> tuple[str, ...]:
    names = []
    for parts in read_json(path, list):
        if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
            raise DataError(f"{path}: class {shown(repr(parts))}; expected a list such as ['Back', '15som', '05Twis']")
        names.append("_".join(parts))
        refuse_escape(names[-1], path.name)
    if len({name.casefold() for name in names}) < len(names):
        raise DataError(f"{path}: must name each class once")
    return tuple(names)


DIVING48 = ListFormat(
    example="Diving48_V2_train.json",
    find=by_name(_NAME.format("(?:train|test)")),
    read=_read,
)
