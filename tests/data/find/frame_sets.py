"""Small sets of videos on disk whose pixels say which video and which frame they are."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np

from r23d_jax.data.find.frames import FrameFiles, PackedFrames, VideoIndex

VIDEO_STEP, FRAME_STEP = 20, 5  # gray levels from one video, and from one frame, to the next


def picture(video: int, frame: int, height: int = 24, width: int = 32) -> np.ndarray:
    """(height, width, 3) uint8 RGB: red says which video, green which frame, blue rises from left to right."""
    blue = np.broadcast_to(np.linspace(20, 230, width), (height, width))
    red, green = 10 + VIDEO_STEP * video, 10 + FRAME_STEP * frame
    return np.stack([np.full_like(blue, red), np.full_like(blue, green), blue], -1).round().astype(np.uint8)


def encode(pixels: np.ndarray, suffix: str = ".jpg") -> bytes:
    done, content = cv2.imencode(suffix, pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98] if suffix == ".jpg" else [])
    assert done
    return content.tobytes()


def videos_and_frames(video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads off (..., t, h, w, 3) pixels which video and frame each picture is: two (..., t) int arrays."""
    red, green = video[..., 0].mean((-2, -1)), video[..., 1].mean((-2, -1))
    return np.round((red - 10) / VIDEO_STEP).astype(int), np.round((green - 10) / FRAME_STEP).astype(int)


def videos(names: list[str], class_names: tuple[str, ...] = ("a",), named: bool = True) -> VideoIndex:
    """Videos of the first class whose frames are nowhere."""
    rows = len(names)
    nowhere = np.array([""] * rows)
    files = FrameFiles(nowhere, nowhere, nowhere, np.zeros(rows, int), np.ones(rows, int), np.ones(rows, np.int32))
    labels = np.zeros(rows, np.int32)
    return VideoIndex(class_names, np.array(names), labels, np.ones(rows, np.int32), files, "test", named=named)


def write_videos(
    root: Path, counts: list[int], height: int = 24, width: int = 32, suffix: str = ".jpg", first: int = 1
) -> VideoIndex:
    """Video v has counts[v] frames and label v % 3; frames are `image_00001.jpg` and so on."""
    folders = []
    for video, count in enumerate(counts):
        folder = root / f"v_Class{video % 3}_g{video:02d}_c01"
        folder.mkdir(parents=True)
        folders.append(folder)
        for frame in range(count):
            content = encode(picture(video, frame, height, width), suffix)
            (folder / f"image_{first + frame:05d}{suffix}").write_bytes(content)
    rows = len(counts)
    return VideoIndex(
        class_names=("Class0", "Class1", "Class2"),
        names=np.array([folder.name for folder in folders]),
        labels=np.arange(rows, dtype=np.int32) % 3,
        num_frames=np.array(counts, np.int32),
        frames=FrameFiles(
            folder=np.array([str(folder) for folder in folders]),
            prefix=np.array(["image_"] * rows),
            suffix=np.array([suffix] * rows),
            first=np.full(rows, first, np.int64),
            step=np.ones(rows, np.int64),
            digits=np.full(rows, 5, np.int32),
        ),
        layout="test",
    )


def as_value(content: bytes) -> bytes:
    """A value as protobuf writes it: tag, length in seven bits a byte, content."""
    length, header = len(content), b"\x0a"
    while length >= 1 << 7:
        header += bytes([length & 127 | 128])
        length >>= 7
    return header + bytes([length]) + content


def pack(index: VideoIndex, folder: Path) -> VideoIndex:
    """The same videos in two files, with other bytes around every video."""
    assert isinstance(index.frames, FrameFiles)
    folder.mkdir()
    shards = (str(folder / "a.tfrecord"), str(folder / "b.tfrecord"))
    contents = [b"", b""]
    shard, begin, row, length = [], [], [], []
    for video, count in enumerate(index.num_frames.tolist()):
        shard.append(video % 2)
        row.append(len(length))
        contents[video % 2] += b"<gap>"
        begin.append(len(contents[video % 2]))
        for frame in range(count):
            content = Path(index.frames.path(video, frame)).read_bytes()
            length.append(len(content))
            contents[video % 2] += as_value(content)
    for path, content in zip(shards, contents, strict=True):
        Path(path).write_bytes(content + b"<end>")
    frames = PackedFrames(
        shards=shards,
        shard=np.array(shard, np.int32),
        begin=np.array(begin, np.int64),
        row=np.array(row, np.int64),
        length=np.array(length, np.uint32),
        names=index.names,
    )
    return dataclasses.replace(index, frames=frames)
