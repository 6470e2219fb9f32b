"""Something-Something-v2's lists: `labels.json`, `train.json` and `validation.json`.

Their names may begin with `something-something-v2-`. `labels.json` numbers the classes; an item of the others has an
`id`, which names the video, and a `template`, which is the class with its placeholders in brackets.
"""

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
    suggest,
)

_NAME = r"(?:something-something-v2-)?{}\.json"
_SIDES = {"train": "train", "test": "validation"}  # the test list has no labels


def _read(lists: Path, subset: Subset, split: int) -> Sides:
    del split  # there is one
    labels = choose_file(lists, _NAME.format("labels"), "the classes")
    assert labels is not None, "it tells the format"
    class_names = _read_classes(labels)
    by_fold = {name.casefold(): name for name in class_names}
    sides = {}
    for side, stem in _SIDES.items():
        path = choose_file(lists, _NAME.format(stem), f"the {side} videos")
        if path is None and side == subset:
            raise DataError(f"{lists / stem}.json: no such file; it lists the {side} videos")
        if path is None:
            continue
        sides[side] = []
        for where, _, (video, template) in items(path, "id template"):
            plain = template.replace("[", "").replace("]", "")
            if plain.casefold() not in by_fold:
                raise DataError(
                    f"{where}: template {shown(template)} is not in {labels.name}; {suggest(plain, class_names)}"
                )
            name = relative_path(video, where)
            sides[side].append(Listed(name, name, by_fold[plain.casefold()], where, ids=(name,)))
    return class_names, sides


def _read_classes(path: Path) -> tuple[str, ...]:
    numbers = {}
    for name, number in read_json(path, dict).items():
        refuse_escape(name, path.name)
        if not str(number).isdecimal() or len(str(number)) > 9:
            raise DataError(f"{path}: class {shown(name)} has the number {shown(str(number))}; expected 0, 1, ...")
        numbers[name] = int(str(number))
    if len({name.casefold() for name in numbers}) < len(numbers) or len(set(numbers.values())) < len(numbers):
        raise DataError(f"{path}: must name each class and each number once")
    if not numbers:
        raise DataError(f"{path}: names no class")
    return tuple(sorted(numbers, key=numbers.__getitem__))


SOMETHING = ListFormat(
    example="labels.json",
    find=by_name(_NAME.format("labels")),
    read=_read,
)
