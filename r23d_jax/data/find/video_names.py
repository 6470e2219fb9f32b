"""Formats of video files, and the parts of video names."""

import re
from pathlib import Path

# FFmpeg's readers of videos -> suffixes of their files. No other reader is used: a playlist, for example, could name
# other files or addresses to read.
VIDEO_FORMATS: dict[str, tuple[str, ...]] = {
    "avi": (".avi",),
    "mov": (".mp4", ".m4v", ".mov", ".3gp", ".3g2"),
    "matroska": (".mkv", ".webm"),
    "mpeg": (".mpg", ".mpeg", ".vob"),
    "mpegts": (".ts", ".mts", ".m2ts"),
    "asf": (".wmv", ".asf"),
    "flv": (".flv",),
    "ogg": (".ogv",),
    "gif": (".gif",),
    # These have no suffix of their own but may have another's: some copies of UCF101 hold bare MPEG-4 named .mp4. A WAV
    # file is opened so that the message can report that it has no video stream.
    **dict.fromkeys(("m4v", "h264", "hevc", "av1", "ivf", "obu", "mpegvideo", "mjpeg", "dv", "wav"), ()),
}
VIDEO_SUFFIXES = tuple(suffix for suffixes in VIDEO_FORMATS.values() for suffix in suffixes)

ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)

_GROUP = re.compile(r"_(g[0-9]+)_c[0-9]+$", re.IGNORECASE)
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")  # not in names: it could clear a terminal, or forge a line of the log


def named_video(name: str) -> Path | str:
    """What a user's name of a video means: a str for an address, a path otherwise."""
    return name if _SCHEME.match(name) else Path(name)


def without_suffix(name: str) -> str:
    """The name without a video suffix. Any other dot belongs to the name."""
    lower = name.lower()
    if not lower.endswith(VIDEO_SUFFIXES):  # all at once, because a list may have a quarter of a million names
        return name
    for suffix in VIDEO_SUFFIXES:
        # A file of which only dots would remain would become a folder such as `..`
        if lower.endswith(suffix) and name[: -len(suffix)].rpartition("/")[2].strip("."):
            return name[: -len(suffix)]
    return name


def group_of(name: str) -> str | None:
    """`g08` for `v_Diving_g08_c01`; None if the name holds no group."""
    found = _GROUP.search(name)
    return found[1].lower() if found else None


def class_in_name(name: str) -> str:
    """`Diving` for `v_Diving_g01_c01`; "" if the name holds no class."""
    return name.split("_", 1)[1].rsplit("_", 2)[0] if group_of(name) and name.lower().startswith("v_") else ""


def folded_class(name: str) -> str:
    """`class_in_name` in lower case."""
    return class_in_name(name).casefold()
