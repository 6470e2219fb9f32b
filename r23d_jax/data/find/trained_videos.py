"""Which videos a network was trained on, kept with its weights: no run is scored on them unnoticed.

Each video is kept as six bytes of a hash of its class and its name. So a checkpoint of Kinetics' 240,000 videos is 2 MB
larger, and a video is taken for another once in a thousand runs.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable

import numpy as np

from r23d_jax.config.motion import MOTIONS
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.find.video_names import class_in_name

_BYTES = 6
_WIDTH = 8  # letters for a video in the text of `digests`
EARLIER = "."  # between the videos of the training list, in its order, and those that it had earlier in the same run


def digests(index: VideoIndex) -> str:
    """The videos of an index in their order, as text that JSON can hold; "" if they have no names of their own."""
    return base64.b64encode(b"".join(map(_digest, _keys(index)))).decode() if index.named else ""


def were_among(kept: str, index: VideoIndex) -> np.ndarray:
    """(N,) bool: which videos of an index are among those of `digests`; all False if that is "", or not readable.

    A video that is listed under another name is not known again.
    """
    try:
        content = base64.b64decode(kept.replace(EARLIER, ""), validate=True) if index.named else b""
    except binascii.Error:
        content = b""
    known = {content[start : start + _BYTES] for start in range(0, len(content), _BYTES)}
    return np.array([_digest(key) in known for key in _keys(index)], bool)


def together(*kept: str) -> str:
    """The videos of several texts, each once."""
    return "".join(dict.fromkeys(mark for text in kept for part in split(text) for mark in part))


def split(kept: str) -> tuple[list[str], list[str]]:
    """A text for each video of the training list, and for each that it had earlier."""
    listed, _, earlier = kept.partition(EARLIER)
    now, before = (
        [part[start : start + _WIDTH] for start in range(0, len(part), _WIDTH)] for part in (listed, earlier)
    )
    return now, before


def _keys(index: VideoIndex) -> Iterable[str]:
    """Class and name, the same in lists of any format: UCF101's has `v_Diving_g08_c01` where CSV has a path."""
    moving = index.class_names == MOTIONS  # instead of classes; to be evaluated, a video has a row for each
    for name, label in zip(index.names.tolist(), index.labels.tolist(), strict=True):
        if moving:
            name = next((name.removesuffix(f" {motion}") for motion in MOTIONS if name.endswith(f" {motion}")), name)
        last, class_name = name.rpartition("/")[2], index.class_names[label]
        if class_in_name(last):
            yield last
        elif moving or f"/{class_name}/".casefold() in f"/{name}".casefold():
            yield name
        else:
            yield f"{class_name}/{name}"


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.casefold().encode(errors="surrogatepass"), digest_size=_BYTES).digest()
