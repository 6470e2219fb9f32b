"""Bad pictures among the frames of videos: in folders and in shards, in training and in evaluation."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from r23d_jax.config import DataConfig, EvalConfig, preprocessing
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.frames import VideoIndex, index_frames
from r23d_jax.data.find.packed import index_packed
from r23d_jax.data.find.picture_header import claimed_size, is_safe
from r23d_jax.data.find.splits import Entry, VideoList, read_list
from r23d_jax.data.make.packed_builder import PackSource, write_packed
from r23d_jax.data.read import pipeline
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.data.read.views import make_views
from tests.hostile.bad_files.corpus import PICTURES, BadFile, forbidden, picture, pipe, pixels

ROOT = Path(__file__).resolve().parents[3]
CFG = DataConfig(num_frames=3, short_side=24, crop_size=16, crop="center", max_broken_fraction=1.0, num_workers=2)
INTACT = [f"intact{number}" for number in range(40)]  # enough for training to find a substitute for any bad one
BAD = {name for name, bad in PICTURES.items() if bad.reason}


def listed(*names: str) -> VideoList:
    return VideoList(("A",), tuple(Entry(name, 0, "A", name) for name in names))


def write_frames(root: Path) -> None:
    """One video of three frames per kind of picture, whose second frame is that picture, and some intact videos."""
    intact = BadFile("intact", ".jpg", picture)
    for name in (*PICTURES, *INTACT):
        folder = root / "A" / name
        folder.mkdir(parents=True)
        for number in (1, 2, 3):
            made = PICTURES.get(name, intact)
            content = made.make() if number == 2 else picture()
            (folder / f"{number}{made.suffix}").write_bytes(content)


@pytest.fixture(scope="module", params=["frames", "packed"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "frames":
        write_frames(root)
        return index_frames(root, listed(*PICTURES, *INTACT), cache=False)
    intact = picture()

    def source(name: str) -> PackSource:
        return PackSource(name, "A", lambda: [intact, PICTURES[name].make() if name in PICTURES else intact, intact])

    write_packed(root / "packed", [source(name) for name in (*PICTURES, *INTACT)], ["A"])
    return index_packed(root / "packed", listed(*PICTURES, *INTACT), "train", cache=False)


@pytest.mark.slow
def test_evaluation_leaves_out_what_cannot_be_read_and_says_why(index: VideoIndex) -> None:
    assert len(index) == len(PICTURES) + len(INTACT)
    views = make_views(index.num_frames, preprocessing(CFG), EvalConfig())
    log = BrokenLog(CFG, log=lambda line: None)
    batches = list(pipeline.eval_batches(index, views, CFG, batch_size=4, broken=log))
    mask, video = (np.concatenate([batch[name] for batch in batches]) for name in ("mask", "video_id"))
    read = {str(index.names[row]) for row in video[mask == 1]}
    assert read == {*PICTURES, *INTACT} - BAD
    assert set(log.faults) == BAD and log.count == len(BAD)
    for name, fault in log.faults.items():
        assert re.search(PICTURES[name].reason, fault.reason), f"{name}: {fault.reason}"
        where = f"/A/{name}/2{PICTURES[name].suffix}" if "frames0" in fault.file else f"(frame 1 of {name})"
        assert fault.file.endswith(where)


def test_training_puts_intact_videos_in_their_place(index: VideoIndex) -> None:
    log = BrokenLog(CFG, log=lambda line: None)
    batches = pipeline.train_batches(
        index, CFG, seed=0, global_batch_size=5, start_step=0, num_steps=26, broken=log
    )  # two epochs
    given = {str(index.names[row]) for batch in batches for row in batch["video_id"]}
    assert given == {*PICTURES, *INTACT} - BAD
    assert set(log.faults) == BAD


# -- sizes that headers claim ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "WEBP lossless", "JPEG progressive"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (48, 64), (300, 7)])
def test_the_size_is_what_pillow_says(kind: str, height: int, width: int) -> None:
    kind, _, option = kind.partition(" ")
    options: dict[str, Any] = {option: True} if option else {}
    content = picture(kind, image=pixels(height, width), **options)
    assert claimed_size(content) == (height, width)
    assert is_safe(content)


def test_what_has_no_size_is_not_decoded() -> None:
    for content in (b"", b"\xff\xd8", b"\x89PNG\r\n", b"GIF8", b"RIFF1234WEBPVP8L", b"BM", b"\xff\x0aJPEG XL", b"text"):
        assert claimed_size(content) is None and not is_safe(content)


@given(st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF0000WEBPVP8 "]), st.binary())
def test_any_bytes_have_a_size_or_none(start: bytes, content: bytes) -> None:
    size = claimed_size(start + content)
    assert size is None or min(size) >= 0


@pytest.mark.slow
def test_bombs_do_not_take_memory(tmp_path: Path) -> None:
    """A process of its own decodes them beside an intact picture, and grows by less than one bomb would fill."""
    bombs = [bad.write(tmp_path, name) for name, bad in PICTURES.items() if "bomb" in name]
    intact = tmp_path / "intact.jpg"
    intact.write_bytes(picture())
    code = (
        "import re, sys, tensorflow as tf\n"
        "from r23d_jax.data.read.broken import examine_picture\n"
        "from r23d_jax.data.read.decode import decode_clip\n"
        # Not ru_maxrss, which begins with the peak of the process that starts this one
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "window = lambda height, width: tf.constant([0, 0, 8, 8])\n"
        "run = tf.function(lambda both: decode_clip(tf.unstack(both, num=2), window, 8, False))\n"
        "intact = open(sys.argv[1], 'rb').read()\n"
        "run(tf.constant([intact, intact])), examine_picture(intact)\n"
        "before = peak()\n"
        "for bomb in sys.argv[2:]:\n"
        "    content = open(bomb, 'rb').read()\n"
        "    assert examine_picture(content)[1] is None\n"
        "    try: run(tf.constant([intact, content]))\n"
        "    except tf.errors.InvalidArgumentError: continue\n"
        "    sys.exit(f'{bomb}: decoded')\n"
        "print(peak() - before)\n"
    )
    args = [sys.executable, "-c", code, str(intact), *map(str, bombs)]
    done = subprocess.run(args, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(bombs) >= 5 and int(done.stdout) < 64_000  # KiB; the smallest of them is 90 MB


# -- what is in a folder of frames -------------------------------------------------------------------------------------


def test_a_pipe_among_frames_is_named_and_never_opened(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        for video in ("own", "intact"):
            (tmp_path / "A" / video).mkdir(parents=True, exist_ok=True)
            (tmp_path / "A" / video / f"{number}.jpg").write_bytes(picture())
        (tmp_path / "A" / f"flat-{number}.jpg").write_bytes(picture())
    (tmp_path / "A/own/2.jpg").unlink()
    (tmp_path / "A/flat-3.jpg").unlink()
    with pipe(tmp_path / "A/own/2.jpg"), pipe(tmp_path / "A/flat-3.jpg"):
        index = index_frames(tmp_path, listed("own", "flat", "intact"), cache=False)
    assert index.names.tolist() == ["intact"] and index.missing == ("own", "flat")
    assert "A/own: 2.jpg is no file, but a pipe or a device; remove it" in index.notes[0]
    assert "A: flat-3.jpg is no file" in index.notes[0]


def test_a_folder_and_a_dangling_link_in_place_of_frames(tmp_path: Path) -> None:
    for video in ("folder", "link", "loop", "intact"):
        for number in (1, 3):
            (tmp_path / "A" / video).mkdir(parents=True, exist_ok=True)
            (tmp_path / "A" / video / f"{number}.jpg").write_bytes(picture())
    (tmp_path / "A/folder/2.jpg").mkdir()
    (tmp_path / "A/link/2.jpg").symlink_to("nowhere")
    (tmp_path / "A/loop/2.jpg").symlink_to("2.jpg")
    (tmp_path / "A/intact/2.jpg").symlink_to("1.jpg")
    index = index_frames(tmp_path, listed("folder", "link", "loop", "intact"), cache=False)
    assert index.num_frames.tolist() == [3, 3, 3, 3]
    log = BrokenLog(CFG, log=lambda line: None)
    views = make_views(index.num_frames, preprocessing(CFG), EvalConfig())
    list(pipeline.eval_batches(index, views, CFG, batch_size=4, broken=log))
    reasons = {name: fault.reason for name, fault in log.faults.items()}
    assert reasons == {
        "folder": "is a directory",
        "link": "no such file",
        "loop": "too many levels of symbolic links",
    }


def test_links_to_themselves_and_upwards_hide_nothing_and_end(tmp_path: Path) -> None:
    (tmp_path / "A/video").mkdir(parents=True)
    (tmp_path / "A/video/1.jpg").write_bytes(picture())
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "A/itself").symlink_to("itself")
    for number in range(60):  # read without looking where they lead, these are 60^4 folders
        (tmp_path / f"up{number}").symlink_to(tmp_path)
        (tmp_path / f"A/up{number}").symlink_to(tmp_path)
    index = index_frames(tmp_path, listed("video"), cache=False)
    assert index.names.tolist() == ["video"] and not index.notes


def test_odd_names(tmp_path: Path) -> None:
    names = ["two words", "line\nend", os.fsdecode(b"latin-\xe9"), "quote'\"", "long" * 60, "-rf", "$(reboot)", "%s{0}"]
    for name in names:
        (tmp_path / "A" / name).mkdir(parents=True)
        for number in (1, 2, 3):
            (tmp_path / "A" / name / f"{number}.jpg").write_bytes(picture())
    index_frames(tmp_path, listed(*names))
    index = index_frames(tmp_path, listed(*names))  # from the cache
    assert index.names.tolist() == names
    views = make_views(index.num_frames, preprocessing(CFG), EvalConfig())
    log = BrokenLog(CFG)
    (batch,) = pipeline.eval_batches(index, views, CFG, batch_size=len(names), broken=log)
    assert batch["mask"].all() and not log.count


def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    for folder in ("open", "closed", "more/below"):
        (tmp_path / "A" / folder).mkdir(parents=True)
        (tmp_path / "A" / folder / "1.jpg").write_bytes(picture())
    with forbidden(tmp_path / "A/closed", tmp_path / "A/more"):
        index = index_frames(tmp_path, listed("open", "closed", "below"))
    assert index.names.tolist() == ["open"] and index.missing == ("closed", "below")
    assert f"cannot read the folder {tmp_path}/A/more" in index.notes
    assert "A/closed: cannot be read (Permission denied)" in index.notes[-1]


def test_lists_and_roots_that_may_not_be_read(tmp_path: Path) -> None:
    lists, frames, packed = (tmp_path / name for name in ("lists", "frames", "packed"))
    for folder in (lists, frames / "A/open", packed):
        folder.mkdir(parents=True)
    (frames / "A/open/1.jpg").write_bytes(picture())
    (lists / "train.csv").write_text("open.avi,A\n")
    write_packed(packed / "set", [PackSource("open", "A", lambda: [picture()])], ["A"])
    with forbidden(lists / "train.csv"), pytest.raises(DataError, match=r"train\.csv: cannot be read \(Permission"):
        read_list(lists, "train")
    with forbidden(lists), pytest.raises(DataError, match=r"lists: cannot be read \(Permission denied\)"):
        read_list(lists, "train")
    with forbidden(frames), pytest.raises(DataError, match=r"Cannot read the folder .*frames: may this user read it\?"):
        index_frames(frames, listed("open"), cache=False)
    with forbidden(packed), pytest.raises(DataError, match=r"packed: holds no packed dataset"):
        index_packed(packed, listed("open"), "train", cache=False)
    shards = [*packed.rglob("*.tfrecord-*")]
    with forbidden(*shards), pytest.raises(DataError, match=r"no record .*the file cannot be read \(Permission denied"):
        index_packed(packed, listed("open"), "train", cache=False)
    with forbidden(tmp_path):
        with pytest.raises(DataError, match="no such folder"):
            index_frames(frames, listed("open"), cache=False)
        with pytest.raises(DataError, match="no such folder"):
            read_list(lists, "train")


def test_pillow_agrees_that_bombs_are_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert Image.open(io.BytesIO(PICTURES["png_bomb"].make())).size == (20_000, 20_000)
    assert Image.open(io.BytesIO(PICTURES["webp_bomb"].make())).size == (16_384, 16_384)
