"""Names of videos: suffixes, groups, and what no name may hold."""

import re

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm")
_GROUP = re.compile(r"_(g[0-9]+)_c[0-9]+$", re.IGNORECASE)
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")  # in a name: it would clear a terminal, or forge a line of the log


def without_suffix(name: str) -> str:
    """The name without a video suffix; any other dot belongs to the name."""
    for suffix in VIDEO_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def group_of(name: str) -> str | None:
    """`g08` of `v_Diving_g08_c01`; None where the name holds no group."""
    found = _GROUP.search(name)
    return found[1].lower() if found else None
