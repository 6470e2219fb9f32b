"""Reads the size that an encoded picture claims in its header, before any memory is allocated for its pixels."""

import struct

MAX_PIXELS = 1 << 26  # in a frame, 8192 x 8192: a larger claim is damage, or an attack on memory

_NO_SIZE = (0xC4, 0xC8, 0xCC)  # JPEG markers in the range of the frame headers that are not frame headers


def claimed_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG, PNG, GIF, WebP or BMP; None if the header gives no size, or is of another kind.

    All frames of a GIF are decoded together, so its height is that of one picture that holds the pixels of all frames.
    """
    try:
        if content.startswith(b"\xff\xd8"):
            return _jpeg(content)
        if content.startswith(b"\x89PNG"):
            width, height = struct.unpack_from(">II", content, 16)
            return height, width
        if content.startswith(b"GIF8"):
            return _gif(content)
        if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
            return _webp(content)
        if content.startswith(b"BM"):
            width, height = struct.unpack_from("<ii", content, 18)
            return abs(height), abs(width)
    except (struct.error, IndexError):  # it ends too early
        pass
    return None


def is_safe(content: bytes) -> bool:
    """Whether the picture claims a size that is small enough to be decoded."""
    size = claimed_size(content)
    return size is not None and size[0] * size[1] <= MAX_PIXELS


def _jpeg(content: bytes) -> tuple[int, int] | None:
    """The largest size among the frame headers before the first scan; an undamaged file has one header."""
    largest = None
    position = 2
    while position < len(content):
        if content[position] != 0xFF:
            position += 1
            continue
        marker = content[position + 1]
        if marker == 0xDA:  # a scan: pixels follow
            break
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # these have no length field
            position += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE:
            height, width = struct.unpack_from(">HH", content, position + 5)
            largest = max(largest or (0, 0), (height, width), key=lambda size: size[0] * size[1])
        position += 2 + max(2, *struct.unpack_from(">H", content, position + 2))
    return largest


def _gif(content: bytes) -> tuple[int, int]:
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    pixels = 0
    position = 13 + _color_table(flags)
    try:
        while content[position] in (0x21, 0x2C):
            if content[position] == 0x2C:
                frame_width, frame_height, flags = struct.unpack_from("<HHB", content, position + 5)
                pixels += frame_width * frame_height
                position += 11 + _color_table(flags)  # and one byte, the size of the codes
            else:
                position += 2
            while content[position]:
                position += content[position] + 1
            position += 1
    except (struct.error, IndexError):  # cut off; the frames before count
        pass
    width = max(width, 1)
    return max(height, -(-pixels // width)), width


def _color_table(flags: int) -> int:
    """Size in bytes of the color table that the flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(content: bytes) -> tuple[int, int] | None:
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(content[start : start + 3], "little") + 1 for start in (24, 27))
        return height, width
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None
