"""Which videos a network was trained on, kept with its weights: no run is scored on them unnoticed.

Each name is kept as six bytes of its hash. So a checkpoint of Kinetics' 240,000 videos is 2 MB larger, and a name is
taken for one that it is not once in a thousand runs.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable

import numpy as np

from r23d_jax.data.find.video_names import group_of

_BYTES = 6
_WIDTH = 8  # letters for a video in the text of `digests`
EARLIER = "."  # between the videos of the training list, in its order, and those that it had earlier in the same run


def digests(names: Iterable[str]) -> str:
    """The names of videos in their order, as text that JSON can hold."""
    return base64.b64encode(b"".join(map(_digest, names))).decode()


def were_among(kept: str, names: Iterable[str]) -> np.ndarray:
    """(N,) bool: whether each video is among those of `digests`; all False if that is not readable."""
    try:
        content = base64.b64decode(kept.replace(EARLIER, ""), validate=True)
    except binascii.Error:
        content = b""
    known = {content[start : start + _BYTES] for start in range(0, len(content), _BYTES)}
    return np.array([_digest(name) in known for name in names], bool)


def split(kept: str) -> tuple[list[str], list[str]]:
    """A text for each video of the training list, and for each that it had earlier."""
    listed, _, earlier = kept.partition(EARLIER)
    now, before = (
        [part[start : start + _WIDTH] for start in range(0, len(part), _WIDTH)] for part in (listed, earlier)
    )
    return now, before


def _digest(name: str) -> bytes:
    """Of a name that is the same in lists of any format: UCF101's `v_Diving_g08_c01` may follow a folder there."""
    plain = name.rpartition("/")[2] if group_of(name) else name
    return hashlib.blake2b(plain.casefold().encode(errors="replace"), digest_size=_BYTES).digest()
