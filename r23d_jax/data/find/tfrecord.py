"""Where things lie inside TFRecord files, without copying them: framing, checksums and the Example message.

A record is: length (8 bytes, little-endian), masked CRC-32C of those 8 bytes (4), data, masked CRC-32C of the data (4).
The data of interest is a serialized `tf.train.Example`, a map from names to lists of bytes, floats or integers.
"""

import dataclasses
import struct
from collections.abc import Iterator

import google_crc32c
import numpy as np

_MASK_DELTA = 0xA282EAD8
_HEADER, _FOOTER = 12, 4


@dataclasses.dataclass(frozen=True)
class Record:
    """One record: its data is bytes [start, end) of the file; `problem` says what is wrong with it, if anything."""

    start: int
    end: int
    problem: str = ""


def records(data: np.ndarray) -> Iterator[Record]:
    """Walks through the records of a TFRecord file, checking every checksum.

    Args:
      data: (size,) uint8, the file; may be a memory map.

    Yields:
      Records in file order. A record whose data is damaged has a `problem`, and the walk continues after it. After a
      damaged length, or where the file ends early, nothing more can be found: a last record without data reports it.
    """
    position, size = 0, len(data)
    while position < size:
        header = data[position : position + _HEADER].tobytes()
        if len(header) < _HEADER:
            yield Record(position, position, f"the file ends inside the record at byte {position}")
            return
        length, length_crc = struct.unpack("<QI", header)
        if masked_crc32c(header[:8]) != length_crc:
            yield Record(position, position, f"the record length at byte {position} is damaged")
            return
        start, end = position + _HEADER, position + _HEADER + length
        if end + _FOOTER > size:
            yield Record(position, position, f"the file ends inside the record at byte {position}")
            return
        stored = struct.unpack("<I", data[end : end + _FOOTER].tobytes())[0]
        ok = masked_crc32c(data[start:end].tobytes()) == stored
        yield Record(start, end, "" if ok else f"the checksum of the record at byte {position} is wrong")
        position = end + _FOOTER


def masked_crc32c(data: bytes) -> int:
    """The checksum of some bytes, as TFRecord files store it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


# -- Example -----------------------------------------------------------------------------------------------------------

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def parse_example(data: np.ndarray, start: int, end: int) -> dict[str, list[tuple[int, int]] | list[int]]:
    """Reads the tf.train.Example in bytes [start, end) of a file.

    Returns:
      By feature name: for lists of bytes the (offset, length) of each value in the file, for lists of integers the
      values. Lists of floats are left out.

    Raises:
      ValueError: the bytes are no Example.
    """
    view = memoryview(data)  # pyright: ignore[reportArgumentType]
    features: dict[str, list[tuple[int, int]] | list[int]] = {}
    for number, begin, stop in _messages(view, start, end):
        if number != 1:
            continue
        for entry, entry_start, entry_end in _messages(view, begin, stop):
            if entry == 1:
                name, value = _map_entry(view, entry_start, entry_end)
                if value is not None:
                    features[name] = value
    return features


def _map_entry(view: memoryview, start: int, end: int) -> tuple[str, list[tuple[int, int]] | list[int] | None]:
    name, value = "", None
    for number, begin, stop in _messages(view, start, end):
        if number == 1:
            name = bytes(view[begin:stop]).decode("utf-8", errors="replace")
        elif number == 2:
            for kind, list_start, list_end in _messages(view, begin, stop):
                if kind == 1:
                    value = [(b, s - b) for n, b, s in _messages(view, list_start, list_end) if n == 1]
                elif kind == 3:
                    value = _integers(view, list_start, list_end)
    return name, value


def _messages(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of the length-delimited fields of a message; other fields are passed over."""
    position = start
    while position < end:
        key, position = _varint(view, position, end)
        number, kind = key >> 3, key & 7
        if kind == _BYTES:
            length, position = _varint(view, position, end)
            if position + length > end:
                raise ValueError("a field is longer than its message")
            yield number, position, position + length
            position += length
        elif kind == _VARINT:
            _, position = _varint(view, position, end)
        elif kind in (_FIXED32, _FIXED64):
            position += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {kind}")
    if position != end:
        raise ValueError("a message ends inside a field")


def _integers(view: memoryview, start: int, end: int) -> list[int]:
    """Values of an Int64List, packed or not."""
    values, position = [], start
    while position < end:
        key, position = _varint(view, position, end)
        if key == (1 << 3 | _BYTES):
            length, position = _varint(view, position, end)
            stop = position + length
            if stop > end:
                raise ValueError("a field is longer than its message")
            while position < stop:
                value, position = _varint(view, position, stop)
                values.append(_signed(value))
        elif key == (1 << 3 | _VARINT):
            value, position = _varint(view, position, end)
            values.append(_signed(value))
        else:
            raise ValueError("not a list of integers")
    return values


def _varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number runs past its message")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
