"""Classes that a mirror image turns into each other, such as left and right."""

import re
from collections.abc import Sequence

from r23d_jax.config import ConfigError

_OPPOSITES = {"left": "right", "right": "left"}
_OPPOSITES |= {turn: "clockwise" for turn in ("counterclockwise", "anticlockwise")}
_WORD = re.compile("|".join([*_OPPOSITES, "clockwise"]))


def mirrored_pairs(class_names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of classes whose names differ only in their direction, as "Swipe left" and "Swipe right" do.

    A name with a direction but without a counterpart, such as "LeftHook", is in no pair: its mirror image is still the
    only class that looks like it.
    """
    folded = {re.sub(r"[\W_]+", "", name).casefold(): name for name in class_names}
    pairs = set()
    for text, name in folded.items():
        for turn in ("counterclockwise", "anticlockwise"):  # each may be the opposite of clockwise
            opposite = _WORD.sub(lambda word, turn=turn: _OPPOSITES.get(word[0], turn), text)
            if opposite != text and opposite in folded:
                pairs.add(tuple(sorted((name, folded[opposite]))))
    return sorted(pairs)


def mirrors(flip: object, class_names: Sequence[str]) -> bool:
    """Whether training clips are mirrored at random: as `config.data.flip` says, or if no classes are a pair."""
    return not mirrored_pairs(class_names) if flip == "auto" else bool(flip)


def refuse_mirrored_views(crops: int, flip: object, class_names: Sequence[str]) -> None:
    """Raises ConfigError if half of the views of a video, those of ten crops, would be of another class."""
    if crops != 10 or mirrors(flip, class_names):
        return
    pairs = mirrored_pairs(class_names)
    why = f"a mirror image of {pairs[0][0]!r} is {pairs[0][1]!r}" if pairs else "config.data.flip is False"
    raise ConfigError(
        f"config.eval.crops=10: half of these views are mirrored, and {why}: set --config.eval.crops=3; or train and "
        "evaluate with config.data.flip=True if a mirror image keeps its class"
    )
