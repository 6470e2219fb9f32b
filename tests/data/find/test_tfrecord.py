"""TFRecord framing, checksums and the Example message."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r23d_jax.data.find.tfrecord import parse_example, records
from tests.hostile.bad_files.corpus import framed


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


@pytest.mark.parametrize("size", [0, 1, 9, 70_001])
def test_checksums_against_tensorflow(size: int, tmp_path: Path) -> None:
    import tensorflow as tf

    content = np.random.default_rng(size).bytes(size)
    with tf.io.TFRecordWriter(str(tmp_path / "shard")) as writer:
        writer.write(content)
        writer.write(content[::-1])
    written = (tmp_path / "shard").read_bytes()
    assert written == framed(content) + framed(content[::-1])
    assert [record.problem for record in records(as_array(written))] == ["", ""]


def test_records_and_damage() -> None:
    contents = [b"one", b"", bytes(5000), b"four"]
    data = bytearray(b"".join(map(framed, contents)))
    found = list(records(as_array(bytes(data))))
    assert [bytes(data[r.start : r.end]) for r in found] == contents
    assert not any(r.problem for r in found)

    third = data.index(bytes(5000))
    data[third + 2500] ^= 1  # in the data of the third: it alone is lost
    found = list(records(as_array(bytes(data))))
    assert [bool(r.problem) for r in found] == [False, False, True, False]
    assert found[2].problem == f"the checksum of the record at byte {third - 12} is wrong"

    data[third - 12] ^= 1  # in its length: nothing behind can be found
    found = list(records(as_array(bytes(data))))
    assert [r.problem for r in found] == ["", "", f"the record length at byte {third - 12} is damaged"]
    for cut in (3, len(data) - third - 100, len(data) - third + 5):
        *_, last = records(as_array(bytes(data[: third - 12]) + framed(bytes(5000)) + framed(b"four"))[:-cut])
        assert "the file ends inside the record" in last.problem


def test_example_against_tensorflow() -> None:
    import tensorflow as tf

    def feature(**kind: list) -> tf.train.Feature:
        lists = {"bytes": tf.train.BytesList, "int64": tf.train.Int64List, "float": tf.train.FloatList}
        return tf.train.Feature(**{f"{name}_list": lists[name](value=value) for name, value in kind.items()})

    frames = [b"\xff\xd8 one", b"", b"three\0\0"]
    example = tf.train.Example(
        features=tf.train.Features(
            feature={
                "video": feature(bytes=frames),
                "label": feature(int64=[7]),
                "many": feature(int64=[-1, 0, 1 << 40]),
                "float": feature(float=[1.5, 2.5]),
                "empty": tf.train.Feature(),
                "naïve name": feature(bytes=["é".encode()]),
            }
        )
    ).SerializeToString()
    data = as_array(b"before" + example + b"behind")
    parsed = parse_example(data, 6, 6 + len(example))
    assert parsed["label"] == [7]
    assert parsed["many"] == [-1, 0, 1 << 40]
    assert [data[a : a + n].tobytes() for a, n in parsed["video"]] == frames  # pyright: ignore[reportGeneralTypeIssues]
    assert parsed["float"] == [1.5, 2.5]
    assert set(parsed) == {"video", "label", "many", "float", "naïve name"}


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(content: bytes) -> None:
    data = as_array(content)
    try:
        parsed = parse_example(data, 0, len(data))
    except ValueError:
        return
    for values in parsed.values():
        for value in values:
            assert isinstance(value, int | float) or 0 <= value[0] <= value[0] + value[1] <= len(data)
    assert [r.problem != "" for r in records(data)] == ([True] if content else [])
