"""Finds the places of records, and of the values in them, inside TFRecord files.

A record is: length (8 bytes, little-endian), masked CRC-32C of those 8 bytes (4), data, masked CRC-32C of the data (4).
The data of interest is a serialized `tf.train.Example`, a map from names to lists of bytes, floats or integers.
"""

import dataclasses
import struct
from collections.abc import Iterator

import google_crc32c
import numpy as np

Values = list[tuple[int, int]] | list[int] | list[float]  # of a feature

_MASK_DELTA = 0xA282EAD8
_HEADER, _FOOTER = 12, 4


@dataclasses.dataclass(frozen=True)
class Record:
    """One record: its data is bytes [start, end) of the file; `problem` is "" if it is intact."""

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


def header_bytes(lengths: np.ndarray) -> np.ndarray:
    """Bytes of the tag and the length that stand before a value of these lengths; int64, as `lengths`."""
    return 2 + np.sum([lengths >> bits > 0 for bits in (7, 14, 21, 28)], axis=0)


def parse_example(data: np.ndarray, start: int, end: int) -> dict[str, Values]:
    """Reads the tf.train.Example in bytes [start, end) of a file.

    Returns:
      By feature name: for lists of bytes the (offset, length) of each value in the file, for lists of numbers the
      values.

    Raises:
      ValueError: the bytes are not an Example.
    """
    import tensorflow as tf  # takes seconds; not needed when the index is cached
    from google.protobuf.message import DecodeError

    content = data[start:end].tobytes()
    try:
        example = tf.train.Example.FromString(content)
    except DecodeError as error:
        raise ValueError(f"not an example ({error})") from error
    features: dict[str, Values] = {}
    for name, feature in example.features.feature.items():
        if feature.HasField("int64_list"):
            features[name] = list(feature.int64_list.value)
        elif feature.HasField("float_list"):
            features[name] = list(feature.float_list.value)
        elif feature.HasField("bytes_list"):
            places, position = [], 0
            for value in feature.bytes_list.value:  # in file order; a place before a value's own has the same bytes
                # A tag and a length separate one value from the next. Searching takes longer than this guess.
                adjacent = position + 1 + -(-max(len(value), 1).bit_length() // 7)
                position = adjacent if content.startswith(value, adjacent) else content.index(value, position)
                places.append((start + position, len(value)))
                position += len(value)
            features[name] = places
    return features
