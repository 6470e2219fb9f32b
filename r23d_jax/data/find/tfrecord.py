"""Where things lie inside TFRecord files, without copying them: framing, checksums and the Example message.

A record is: length (8 bytes, little-endian), masked CRC-32C of those 8 bytes (4), data, masked CRC-32C of the data (4).
The data of interest is a serialized `tf.train.Example`, a map from names to lists of bytes, floats or integers.
Python's standard library has no CRC-32C; the one here works on many stretches of the data at once with NumPy.
"""

import dataclasses
import functools
import struct
from collections.abc import Iterator

import numpy as np

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected
_MASK_DELTA = 0xA282EAD8
_HEADER, _FOOTER = 12, 4
_SMALL, _BLOCK = 1 << 11, 1 << 22  # bytes: below, plain Python is as fast; above, the work leaves the processor's cache


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
      Records in file order. One whose data is damaged has a `problem`, and the walk goes on behind it. Where a length
      is damaged or the file ends early, nothing behind can be found: a last record without data says so.
    """
    position, size = 0, len(data)
    while position < size:
        header = data[position : position + _HEADER].tobytes()
        if len(header) < _HEADER:
            yield Record(position, position, f"the file ends inside the record at byte {position}")
            return
        length, length_crc = struct.unpack("<QI", header)
        if masked(_crc32c_short(header[:8])) != length_crc:
            yield Record(position, position, f"the record length at byte {position} is damaged")
            return
        start, end = position + _HEADER, position + _HEADER + length
        if end + _FOOTER > size:
            yield Record(position, position, f"the file ends inside the record at byte {position}")
            return
        stored = struct.unpack("<I", data[end : end + _FOOTER].tobytes())[0]
        ok = masked(crc32c(data[start:end])) == stored
        yield Record(start, end, "" if ok else f"the checksum of the record at byte {position} is wrong")
        position = end + _FOOTER


# -- checksum ----------------------------------------------------------------------------------------------------------


def masked(crc: int) -> int:
    """A CRC as TFRecord files store it."""
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def crc32c(data: np.ndarray) -> int:
    """CRC-32C of (n,) uint8 data.

    The data is cut into equal stretches whose CRCs advance together, two bytes at a time; then neighbours are joined,
    again all at once: crc(a + b) = shift(crc(a), len(b)) ^ crc(b), for CRCs without the usual initial value. Shifting
    is linear in the bits of a CRC, so it is four table look-ups.
    """
    crc = 0xFFFFFFFF
    position = 0
    while len(data) - position >= _SMALL:
        n = min(len(data) - position, _BLOCK)
        each = 1 << (n.bit_length() // 2 - 2)  # bytes; a power of two, so that joining is one look-up a level
        count = 1 << ((n // each).bit_length() - 1)
        whole = each * count
        words = np.ascontiguousarray(data[position : position + whole]).view("<u2").reshape(count, each // 2)
        table = _table16()
        state = np.zeros(count, np.uint32)
        for column in np.ascontiguousarray(words.T):
            state = table[(state ^ column) & 0xFFFF] ^ (state >> 16)
        length = each
        while len(state) > 1:
            state = _shift(state[0::2], length) ^ state[1::2]
            length *= 2
        crc = int(_shift(np.array([crc], np.uint32), whole)[0] ^ state[0])
        position += whole
    return _crc32c_short(data[position:].tobytes(), crc)


def _crc32c_short(data: bytes, crc: int = 0xFFFFFFFF) -> int:
    table = _table8()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table8() -> tuple[int, ...]:
    def entry(crc: int) -> int:
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
        return crc

    return tuple(entry(i) for i in range(256))


@functools.cache
def _table16() -> np.ndarray:
    table = np.array(_table8(), np.uint32)
    state = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(2):
        state = table[state & 0xFF] ^ (state >> 8)
    return state


def _shift(crc: np.ndarray, num_bytes: int) -> np.ndarray:
    """CRCs (m,) uint32 after `num_bytes` further zero bytes."""
    bit = 0
    while num_bytes >> bit:
        if num_bytes >> bit & 1:
            crc = _apply(_shift_tables(bit), crc)
        bit += 1
    return crc


def _apply(tables: np.ndarray, crc: np.ndarray) -> np.ndarray:
    return (
        tables[0][crc & 0xFF] ^ tables[1][crc >> 8 & 0xFF] ^ tables[2][crc >> 16 & 0xFF] ^ tables[3][crc >> 24 & 0xFF]
    )


@functools.cache
def _shift_tables(power: int) -> np.ndarray:
    """(4, 256) uint32: what each byte of a CRC becomes after 2**power zero bytes."""
    every_byte = np.arange(256, dtype=np.uint32)[None] << (8 * np.arange(4, dtype=np.uint32))[:, None]
    if power == 0:
        table = np.array(_table8(), np.uint32)
        return table[every_byte & 0xFF] ^ (every_byte >> 8)
    half = _shift_tables(power - 1)
    return _apply(half, _apply(half, every_byte))


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
