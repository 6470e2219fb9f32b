"""The prepare command: video files to frame folders and shards, whatever happens on the way."""

import argparse
import dataclasses
import errno
import fcntl
import gc
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import _base as futures
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from r23d_jax.commands import prepare as command
from r23d_jax.commands import train
from r23d_jax.config import Config, validate
from r23d_jax.data.find.frames import PackedFrames, index_frames
from r23d_jax.data.find.list_format import Subset
from r23d_jax.data.find.packed import index_packed
from r23d_jax.data.find.splits import read_list
from r23d_jax.data.find.video_names import VIDEO_SUFFIXES
from r23d_jax.data.make import jobs as engine
from r23d_jax.data.make import prepare as preparing
from r23d_jax.data.make.jobs import Job, PrepareError, Result, run_job, run_jobs
from r23d_jax.data.make.video import iter_frames
from r23d_jax.data.sources import open_index
from tests.data.find import test_list_formats
from tests.hostile.bad_files.corpus import add_video_stream

ROOT = Path(__file__).resolve().parents[3]
CLIPS = {"Diving/v_Diving_g01_c01.avi": 6, "Diving/v_Diving_g08_c01.mp4": 9, "Rowing/v_Rowing_g01_c01.avi": 4}


def write_video(path: Path, num_frames: int, codec: str = "mpeg4", pixels: str = "yuv420p", form: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=form or None) as container:
        options = {"qscale": "2"} if codec == "mpeg4" else {}
        stream = add_video_stream(container, codec, height=48, width=64, options=options)
        stream.pix_fmt = pixels
        ramp = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
        for i in range(num_frames):
            frame = np.stack([ramp, ramp + np.uint8(3 * i), np.full_like(ramp, 40)], -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    for name, num_frames in CLIPS.items():
        write_video(root / name, num_frames)
    return root


@pytest.fixture
def videos(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "videos")
    return tmp_path / "videos"


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "classInd.txt").write_text("1 Archery\n2 Diving\n3 Rowing\n")
    (folder / "trainlist01.txt").write_text("Diving/v_Diving_g08_c01.avi 2\nRowing/v_Rowing_g01_c01.avi 3\n")
    (folder / "testlist01.txt").write_text("Diving/v_Diving_g01_c01.avi\n")
    return folder


def prepare(*args: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([*map(str, args), "--workers", "2"]))


def test_videos_in_a_store_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare("--videos", "abfs://bucket/videos", "--out", tmp_path / "out") == 2
    assert "--videos abfs://bucket/videos: videos may be at s3://, gs:// and az://" in capsys.readouterr().err


def test_the_class_is_the_first_folder_and_the_rest_is_the_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    for number, name in enumerate(("Walk/p1/001", "Walk/p2/001", "Run/p1/001", "train/Sit/001"), start=1):
        write_video(videos / f"{name}.avi", number)
    assert prepare("--videos", videos, "--out", out, "--format", "both") == 0
    assert "4 videos of 3 classes found (Run, Walk, train)" in capsys.readouterr().out
    (tmp_path / "train.csv").write_text("path,label\nWalk/p1/001.avi,Walk\nRun/p1/001.avi,Run\ntrain/Sit/001.avi,Sit\n")
    (tmp_path / "val.csv").write_text("path,label\nWalk/p2/001.avi,Walk\n")
    wanted: dict[Subset, list[int]] = {"train": [1, 3, 4], "test": [2]}
    for subset, want in wanted.items():
        listed = read_list(tmp_path, subset)
        for index in (index_frames(out / "frames", listed), index_packed(out / "packed", listed, subset)):
            assert index.num_frames.tolist() == want and not index.missing


def test_a_grouped_name_below_a_person_has_the_class_of_the_first_folder(tmp_path: Path, capsys) -> None:
    for number, name in enumerate(("Walk/p1/Walk_g01_c01", "Run/p1/Run_g01_c01", "Run/p2/v_Run_g02_c01"), start=1):
        write_video(tmp_path / "videos" / f"{name}.avi", number)
    assert prepare("--videos", tmp_path / "videos", "--out", tmp_path / "out") == 0
    assert "3 videos of 2 classes found (Run, Walk)" in capsys.readouterr().out
    frames = tmp_path / "out" / "frames"
    folders = ("Walk/p1/Walk_g01_c01", "Run/p1/Run_g01_c01", "Run/p2/v_Run_g02_c01")
    assert [len(list((frames / folder).iterdir())) for folder in folders] == [1, 2, 3]


def test_names_of_ucf101_have_the_class_of_the_last_folder(tmp_path: Path, capsys) -> None:
    """However deep it is, and though one of them is spelled otherwise."""
    for name in ("PullUps/v_Pullup_g01_c01", "Diving/v_Diving_g01_c01", "Walk/Walk_g01_c01"):
        write_video(tmp_path / "videos" / "UCF50" / f"{name}.avi", 2)
    assert prepare("--videos", tmp_path / "videos", "--out", tmp_path / "out") == 0
    assert "3 videos of 3 classes found (Diving, PullUps, Walk)" in capsys.readouterr().out


def test_a_listed_video_is_not_taken_from_the_folder_of_another_class(tmp_path: Path, capsys) -> None:
    videos, lists = tmp_path / "videos", tmp_path / "lists"
    for number, name in enumerate(("Run/001", "Run/002", "Run/004", "Walk/003"), start=1):
        write_video(videos / f"{name}.avi", number)
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Run\n2 Walk\n")
    (lists / "trainlist01.txt").write_text("Run/002.avi 1\nWalk/001.avi 2\n")
    (lists / "testlist01.txt").write_text("Run/004.avi\nWalk/003.avi\n")
    assert prepare("--videos", videos, "--out", tmp_path / "out", "--lists", lists) == 0
    said = capsys.readouterr().out
    assert "3 of the 4 listed videos found; 1 not listed; missing: 001" in said
    assert frame_counts(tmp_path / "out") == {"Run/002": 2, "Run/004": 3, "Walk/003": 4}


def test_a_file_in_no_class_folder_is_named(tmp_path: Path, capsys) -> None:
    for name in ("intro", "Walk/1", "Walk/2"):
        write_video(tmp_path / "videos" / f"{name}.avi", 2)
    assert prepare("--videos", tmp_path / "videos", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f"1 of them in no class folder, taken as of class videos, e.g. {tmp_path}/videos/intro.avi: move" in said


def test_a_video_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    write_video(videos / "A/walk.avi", 2)
    write_video(videos / "A/walk/001.avi", 3)
    assert prepare("--videos", videos, "--out", out) == 3
    assert frame_counts(out) == {"A/walk": 2}
    reason = f"its frames would be among those of {videos}/A/walk.avi; rename one of them"
    assert (out / "broken.txt").read_text() == f"{videos}/A/walk/001.avi\t{reason}\n"


def test_files_that_are_not_used_are_counted_and_named(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.rm", "b.rm", "notes.txt", "LICENSE", ".hidden.rm", "._v_Diving_g01_c01.avi"):
        (videos / "Diving" / name).write_bytes(b"")
    assert prepare("--videos", videos, "--out", tmp_path / "out") == 0
    assert (
        f"not used, because the suffix is not that of a video: 4 files: 2 .rm (e.g. {videos}/Diving/a.rm), "
        f"1 other (e.g. {videos}/Diving/LICENSE), 1 .txt (e.g. {videos}/Diving/notes.txt)\n"
    ) in capsys.readouterr().out
    shutil.rmtree(videos / "Rowing")
    for video in (videos / "Diving").glob("v_*"):
        video.unlink()
    assert prepare("--videos", videos, "--out", tmp_path / "out") == 2
    assert "holds no video (.avi .mp4" in (printed := capsys.readouterr().err) and "found instead: 4 files" in printed


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mpg", "mpeg1video"), (".wmv", "wmv2"), (".flv", "flv"), (".ts", "mpeg4"), (".gif", "gif")]
)
def test_less_common_formats_are_prepared(tmp_path: Path, suffix: str, codec: str) -> None:
    write_video(tmp_path / f"videos/Walk/a{suffix}", 40, codec, pixels="rgb8" if codec == "gif" else "yuv420p")
    assert prepare("--videos", tmp_path / "videos", "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out/frames/Walk/a").iterdir())) == 40


def frame_counts(out: Path) -> dict[str, int]:
    """Frames by `<Class>/<video>`, hidden ones included."""
    folders = [p for p in (out / "frames").glob("*/*") if p.is_dir()]
    return {str(p.relative_to(out / "frames")): len(list(p.iterdir())) for p in folders}


WANT = {name.rsplit(".", 1)[0]: num_frames for name, num_frames in CLIPS.items()}


def test_frames_are_what_the_videos_show(videos: Path, lists: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "my out"
    assert prepare("--videos", videos, "--out", out) == 0
    assert frame_counts(out) == WANT
    printed = capsys.readouterr().out
    assert f"3 videos are ready in {out} (3 of them new, with 19 frames)" in printed
    assert (
        "next: python launch.py --config=configs/r23d.py --config.data.root='" + str(out) + "/frames' --con" in printed
    )
    assert (
        json.loads((out / "prepare.json").read_text()).items() >= {"quality": 95, "short_side": 0, "videos": 3}.items()
    )
    assert not (out / "broken.txt").exists()

    index = index_frames(out / "frames", read_list(lists, "train"))
    assert index.layout == "<Class>/<video>/image_00001.jpg (5 digits, from 1)"
    assert (index.names.tolist(), index.num_frames.tolist()) == (["v_Diving_g08_c01", "v_Rowing_g01_c01"], [9, 4])
    decoded = list(iter_frames(videos / "Diving/v_Diving_g08_c01.mp4"))
    for i in range(9):
        image = cv2.imread(index.frames.path(0, i))[..., ::-1]  # pyright: ignore
        assert np.abs(image.astype(int) - decoded[i]).mean() < 2


def test_quality_and_short_side(videos: Path, tmp_path: Path) -> None:
    sizes = []
    for quality in ("95", "30"):
        out = tmp_path / quality
        assert prepare("--videos", videos / "Rowing", "--out", out, "--quality", quality, "--short-side", "24") == 0
        (file, *_) = sorted((out / "frames/Rowing/v_Rowing_g01_c01").iterdir())
        image = cv2.imread(str(file))
        assert image is not None and image.shape == (24, 32, 3)
        sizes.append(file.stat().st_size)
    assert sizes[1] < sizes[0]


def test_a_second_run_does_only_what_is_left(videos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert prepare("--videos", videos, "--out", out) == 0
    done = out / "frames/Diving/v_Diving_g01_c01"
    before = {path: path.stat().st_mtime_ns for path in done.iterdir()}
    shutil.rmtree(out / "frames/Rowing/v_Rowing_g01_c01")
    for stale in ("frames/Rowing/.partial-77", "frames/.partial-1", ".staging/Rowing/.partial-3"):
        (out / stale).mkdir(parents=True)
        (out / stale / "image_00001.jpg").touch()
    capsys.readouterr()
    assert prepare("--videos", videos, "--out", out) == 0
    assert "(1 of them new, with 4 frames)" in capsys.readouterr().out
    assert frame_counts(out) == WANT
    assert {path: path.stat().st_mtime_ns for path in done.iterdir()} == before
    assert not list(out.rglob(".partial*"))


def test_a_replaced_video_is_told(videos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    (out).mkdir()
    (out / "broken.txt").write_text("of the user\n")
    assert prepare("--videos", videos, "--out", out) == 0
    assert "have changed" not in capsys.readouterr().out
    replaced = videos / "Diving/v_Diving_g01_c01.avi"
    write_video(replaced, 9)
    assert prepare("--videos", videos, "--out", out) == 0
    said = capsys.readouterr().out
    assert (
        f"WARNING: 1 video(s) have changed since they were decoded, and keep the frames of before, e.g. {replaced}"
        in said
    )
    assert f"delete {out}/frames/Diving/v_Diving_g01_c01 and the like, or use --overwrite" in said
    shutil.rmtree(out / "frames/Diving/v_Diving_g01_c01")
    assert prepare("--videos", videos, "--out", out) == 0
    assert prepare("--videos", videos, "--out", out) == 0
    assert "have changed" not in capsys.readouterr().out
    assert frame_counts(out)["Diving/v_Diving_g01_c01"] == 9
    assert (out / "broken.txt").read_text() == "of the user\n"


def test_broken_videos_are_listed_and_skipped(videos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    good = (videos / "Diving/v_Diving_g01_c01.avi").read_bytes()
    (videos / "Diving/cut.avi").write_bytes(good[:3000])
    (videos / "Diving/empty\nline.mp4").touch()
    (videos / "Diving/v_Diving_g08_c01.avi").write_bytes(good)  # the .mp4 has the same name
    (videos / os.fsdecode(b"Diving/latin-\xe9.avi")).write_bytes(good)
    (videos / "loop").symlink_to(videos)
    (videos / "notes.txt").touch()
    (videos / ".hidden.avi").touch()
    for _ in range(2):  # the second time they are tried again
        assert prepare("--videos", videos, "--out", out) == 3
        printed = capsys.readouterr()
        assert "3 videos are ready" in printed.out
        assert f"skipped 4 videos that could not be used; they are listed in {out}/broken.txt" in printed.out
        assert "skipped: " in printed.err and "cut.avi" in printed.err
        lines = dict(line.split("\t") for line in (out / "broken.txt").read_text().splitlines())
        assert [Path(name).name for name in lines] == [
            "cut.avi",
            "empty\\nline.mp4",
            "latin-\\udce9.avi",
            "v_Diving_g08_c01.mp4",
        ]
        reasons = " ".join(lines.values())
        for text in ("is empty (0 bytes)", "not valid UTF-8", "has the same class and name as", "cut.avi: "):
            assert text in reasons
    assert not list(out.rglob(".partial*"))
    assert len(frame_counts(out)) == 3


@pytest.mark.parametrize("kind", ["frames", "packed"])
def test_nothing_but_broken_videos(tmp_path: Path, capsys, kind: str) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/x.avi").write_bytes(b"RIFF")
    assert prepare("--videos", tmp_path / "videos", "--out", tmp_path / "out", "--format", kind) == 3
    printed = capsys.readouterr().out
    assert "0 videos are ready" in printed and "skipped 1 videos" in printed and "next:" not in printed


def test_lists_choose_and_name(videos: Path, lists: Path, tmp_path: Path, capsys) -> None:
    write_video(videos / "Juggling/v_Juggling_g01_c01.avi", 3)
    (videos / "Diving").rename(videos / "diving")
    (videos / "diving/v_Diving_g01_c01.avi").rename(videos / "diving/v_DIVING_g01_c01.avi")
    out = tmp_path / "out"
    assert prepare("--videos", videos, "--out", out, "--lists", lists) == 0
    assert frame_counts(out) == WANT  # spelled as in the lists
    printed = capsys.readouterr().out
    assert "3 of the 3 listed videos found; 1 not listed" in printed
    assert printed.endswith(f"--config.data.lists={lists}\n")
    assert prepare("--videos", videos / "Juggling", "--out", tmp_path / "none", "--lists", lists) == 2
    assert "none of its 1 videos is named by the lists" in capsys.readouterr().err


CODECS = {  # of those that do not hold MPEG-4
    **dict.fromkeys((".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"), ("mpeg2video", "yuv420p")),
    **dict.fromkeys((".wmv", ".asf"), ("wmv2", "yuv420p")),
    **{".flv": ("flv", "yuv420p"), ".gif": ("gif", "rgb8"), ".webm": ("libvpx", "yuv420p")},
    ".ogv": ("libvpx", "yuv420p", "ogg"),
}


def test_every_suffix_is_found_and_decoded(tmp_path: Path) -> None:
    for suffix in VIDEO_SUFFIXES:
        write_video(tmp_path / f"videos/A/{suffix[1:]}{suffix.upper()}", 5, *CODECS.get(suffix, ()))
    assert prepare("--videos", tmp_path / "videos", "--out", tmp_path / "out") == 0
    assert frame_counts(tmp_path / "out") == {f"A/{suffix[1:]}": 5 for suffix in VIDEO_SUFFIXES}


def test_videos_without_class_folders(made: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in CLIPS:
        shutil.copy(made / name, flat)
    shutil.copy(made / "Rowing/v_Rowing_g01_c01.avi", flat / "plain.v2.AVI")
    assert prepare("--videos", flat, "--out", tmp_path / "out") == 0
    assert frame_counts(tmp_path / "out") == WANT | {"flat/plain.v2": 4}


# -- the next command --------------------------------------------------------------------------------------------------


# ml_collections' own way to run a config file
LOADS_CONFIG = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")


def next_config(printed: str) -> Config:
    """The config that the printed command trains with."""
    (line,) = (line for line in printed.splitlines() if line.startswith("next: "))
    program, script, *args = shlex.split(line.removeprefix("next: "))
    assert (program, script) == ("python", str(ROOT / "launch.py"))
    return validate(train._parse(args, "").config)


@pytest.mark.slow
@LOADS_CONFIG
@pytest.mark.parametrize("with_lists", [True, False], ids=["lists", "no lists"])
@pytest.mark.parametrize("options", [(), ("--format", "packed"), ("--format", "both"), ("--flow", "dis")], ids=str)
def test_the_next_command_finds_the_videos(
    videos: Path, lists: Path, tmp_path: Path, monkeypatch, capsys, options: tuple[str, ...], with_lists: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(videos / "Rowing/v_Rowing_g02_c01.avi", 5)
    lists.rename(tmp_path / "it's my lists")
    options += ("--lists", "it's my lists") if with_lists else ()
    assert prepare("--videos", "videos", "--out", "my out; (1)", *options) == 0
    cfg = next_config(capsys.readouterr().out)
    wanted = "it's my lists" if with_lists else "my out; (1)/lists"
    assert cfg.data.lists == wanted and not Path(cfg.data.root).is_absolute()
    train, test = (open_index(cfg.data, side) for side in ("train", "test"))
    assert train.class_names == (("Archery",) if with_lists else ()) + ("Diving", "Rowing")
    assert (len(train), len(test)) == ((2, 1) if with_lists else (2, 2))
    assert not train.missing and not test.missing and not set(train.names) & set(test.names)


def test_the_next_command_takes_a_split_that_there_is(videos: Path, lists: Path, tmp_path: Path, capsys) -> None:
    for path in lists.glob("*01.txt"):
        path.rename(path.with_name(path.name.replace("01", "03")))
    assert prepare("--videos", videos, "--out", tmp_path / "out", "--lists", lists) == 0
    assert capsys.readouterr().out.endswith(f"--config.data.lists={lists} --config.data.split=3\n")


@LOADS_CONFIG
@pytest.mark.slow
def test_the_next_command_trains(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("Move left/p1/a", "Move left/p2/b", "Move right/p1/a", "Move right/p2/a"):
        write_video(tmp_path / f"videos/{name}.avi", 6)
    assert prepare("--videos", "videos", "--out", "out") == 0
    printed = capsys.readouterr().out
    command = shlex.split(printed.partition("next: ")[2].splitlines()[0])[2:]
    tiny = ["model.family=f_r2d", "model.depth=10", "model.widths=(4,8,16,64)", "model.head.kind=avgpool"]
    tiny += ["data.num_frames=4"]
    tiny += ["data.short_side=16", "data.crop_size=16", "train.global_batch_size=8", "train.epochs=1"]
    assert train.main([*command, "--workdir=run", *(f"--config.{setting}" for setting in tiny)]) == 0
    printed = capsys.readouterr().out
    assert "train: 2 videos of 2 classes" in printed and "report: run/report.html" in printed
    assert (
        "train: clips are not mirrored, because 1 pair(s) of classes are mirror images, e.g. 'Move left' and 'Move "
        "right'; --config.data.flip=True mirrors them all the same"
    ) in printed


def test_one_video_has_no_split_and_no_next_command(videos: Path, tmp_path: Path, capsys) -> None:
    assert prepare("--videos", videos / "Rowing", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "no split for training and testing: no class has two videos" in printed and "next:" not in printed


def test_listed_videos_that_are_missing_are_named(videos: Path, lists: Path, tmp_path: Path, capsys) -> None:
    names = "".join(f"Diving/v_Diving_g1{i}_c01.avi 2\n" for i in range(4))
    (lists / "trainlist01.txt").write_text((lists / "trainlist01.txt").read_text() + names)
    assert prepare("--videos", videos, "--out", tmp_path / "out", "--lists", lists) == 0
    some = "missing: v_Diving_g10_c01, v_Diving_g11_c01, v_Diving_g12_c01, ..."
    assert f"3 of the 7 listed videos found; 0 not listed; {some}\n" in capsys.readouterr().out


@pytest.mark.parametrize("form", test_list_formats.MAKERS)
def test_videos_of_every_list_format_are_prepared_and_found(tmp_path: Path, form: str, capsys) -> None:
    lists = test_list_formats.write(tmp_path / "lists", test_list_formats.MAKERS[form]())
    entries = {side: read_list(lists, side).entries for side in ("train", "test")}
    for entry in (*entries["train"], *entries["test"]):
        # Kinetics by its YouTube id and in a folder of the side; the others as they are distributed
        name = entry.ids[-1] if entry.ids else entry.name
        folder = "" if entry.ids or "/" in entry.name else entry.class_name
        write_video(tmp_path / "videos" / folder / f"{name}.mp4", 2)
    out = tmp_path / "out"
    assert prepare("--videos", tmp_path / "videos", "--out", out, "--lists", lists) == 0
    cfg = dataclasses.replace(Config().data, root=str(out / "frames"), lists=str(lists))
    for side in ("train", "test"):
        index = open_index(cfg, side)
        assert index.names.tolist() == [entry.name for entry in entries[side]] and not index.missing
    assert "next: " in capsys.readouterr().out


def test_packing_without_tensorflow_datasets_is_refused_before_decoding(
    videos: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert prepare("--videos", videos, "--out", tmp_path / "out", "--format", "both") == 2
    assert "prepare needs tensorflow_datasets, which is not installed: pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- packing -----------------------------------------------------------------------------------------------------------


def packed_bytes(out: Path, lists: Path) -> dict[str, list[bytes]]:
    result = {}
    for side in ("train", "test"):
        index = index_packed(out / "packed", read_list(lists, side), side)
        frames = index.frames
        assert isinstance(frames, PackedFrames) and not index.missing
        for v, name in enumerate(index.names):
            result[str(name)] = [frames.read(v, frame) for frame in range(int(index.num_frames[v]))]
    return result


def test_packed_and_frames_hold_the_same_bytes(videos: Path, lists: Path, tmp_path: Path, capsys) -> None:
    both, packed = tmp_path / "both", tmp_path / "packed only"
    assert prepare("--videos", videos, "--out", both, "--format", "both", "--lists", lists, "--shards", "2") == 0
    assert prepare("--videos", videos, "--out", packed, "--format", "packed", "--lists", lists) == 0
    assert "--config.data.source=packed --config.data.root=" in capsys.readouterr().out
    assert not (packed / "frames").exists() and not (packed / ".staging").exists()
    content = packed_bytes(both, lists)
    assert packed_bytes(packed, lists) == content
    assert len(list((both / "packed").rglob("*.tfrecord-*"))) == 2
    for name, num_frames in WANT.items():
        files = [path.read_bytes() for path in sorted((both / "frames" / name).iterdir())]
        assert content[name.split("/")[1]] == files
        assert len(files) == num_frames

    assert prepare("--videos", videos / "Rowing", "--out", packed, "--format", "packed") == 2
    message = "its shards hold 2 videos that are not in --videos"
    assert message in capsys.readouterr().err

    # Again, with nothing new: nothing is written. With a new video and a broken one: packed anew, with all.
    (shard,) = (packed / "packed").rglob("*.tfrecord-*")
    before = shard.stat()
    assert prepare("--videos", videos, "--out", packed, "--format", "packed", "--lists", lists) == 0
    assert shard.stat() == before
    (videos / "Diving/broken.avi").touch()
    assert prepare("--videos", videos, "--out", packed, "--format", "packed") == 3
    assert shard.stat() == before
    (lists / "testlist01.txt").write_text((lists / "testlist01.txt").read_text() + "Rowing/new.avi\n")
    write_video(videos / "Rowing/new.avi", 2)
    assert prepare("--videos", videos, "--out", packed, "--format", "packed", "--lists", lists) == 0
    again = packed_bytes(packed, lists)
    assert len(again.pop("new")) == 2
    assert again == content


def test_a_packed_video_that_cannot_be_decoded_now_stays_packed(videos: Path, tmp_path: Path, capsys) -> None:
    out, bad = tmp_path / "out", videos / "Diving/v_Diving_g08_c01.mp4"
    assert prepare("--videos", videos, "--out", out, "--format", "packed") == 0
    (shard,) = (out / "packed").rglob("*.tfrecord-*")
    before = shard.stat()
    (videos / "Diving/v_Diving_g08_c02.mp4").write_bytes(bad.read_bytes())
    bad.write_bytes(b"no video")
    assert prepare("--videos", videos, "--out", out, "--format", "packed") == 2
    said = capsys.readouterr().err
    assert f"prepare: {bad}: not a readable video" in said and "by --overwrite. Finished work is kept; run" in said
    assert shard.stat() == before
    assert prepare("--videos", videos, "--out", out, "--format", "packed", "--overwrite") == 3


def test_packing_takes_up_frames_and_finished_decoding(videos: Path, lists: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    assert prepare("--videos", videos / "Diving", "--out", out) == 0
    monkeypatch.setattr(preparing, "_pack", lambda *args: (_ for _ in ()).throw(PrepareError("disk full")))
    assert prepare("--videos", videos, "--out", out, "--format", "packed") == 2
    assert [str(p.relative_to(out / ".staging")) for p in (out / ".staging").glob("*/*")] == ["Rowing/v_Rowing_g01_c01"]
    monkeypatch.undo()
    monkeypatch.setattr(preparing, "run_jobs", lambda *args: pytest.fail("everything is decoded already"))
    assert prepare("--videos", videos, "--out", out, "--format", "packed") == 0
    assert {name: len(frames) for name, frames in packed_bytes(out, lists).items()} == {
        name.split("/")[1]: num_frames for name, num_frames in WANT.items()
    }


# -- wrong use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--videos", "nowhere", "--out", "out"], "--videos nowhere: no such folder"),
        (["--videos", "empty", "--out", "out"], "--videos empty: holds no video (.avi .mp4 .m4v .mov .3gp"),
        (["--videos", "videos", "--out", "file"], "--out file: is a file; give a folder"),
        (["--videos", "videos", "--out", "out", "--quality", "0"], "--quality 0: must be between 1 and 100"),
        (["--videos", "videos", "--out", "out", "--short-side", "-1"], "--short-side -1: must be at least 0"),
        (["--videos", "videos", "--out", "out", "--lists", "empty"], "holds neither classInd.txt nor train.csv"),
        (["--videos", "videos", "--out", "foreign"], "foreign/frames: was not made by this command"),
        (
            ["--videos", "videos", "--out", "foreign", "--overwrite"],
            "foreign/frames: was not made by this comm",
        ),
        (
            ["--videos", "videos", "--out", "busy"],
            "busy: process 7 on elsewhere is at work there; wait until it ends, or stop",
        ),
    ],
)
def test_wrong_use(videos: Path, tmp_path: Path, monkeypatch, capsys, args: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "foreign/frames/mine", "busy"):
        Path(folder).mkdir(parents=True)
    Path("file").touch()
    with open("busy/.prepare.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 on elsewhere")
        lock.flush()
        assert prepare(*args) == 2
    assert f"prepare: {message}" in capsys.readouterr().err.replace("empty: holds neither", "holds neither")
    assert Path("foreign/frames/mine").is_dir()


def test_other_settings_are_refused_unless_overwritten(videos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    (out / "mine").mkdir(parents=True)
    assert prepare("--videos", videos, "--out", out, "--short-side", "24") == 0
    for _ in range(2):
        assert prepare("--videos", videos, "--out", out, "--quality", "80") == 2
        message = (
            f"--out {out}: was prepared with quality 95, short side 24; use the same, another --out, or --overwrite"
        )
        assert message in capsys.readouterr().err
    assert prepare("--videos", videos / "Rowing", "--out", out, "--quality", "80", "--overwrite") == 0
    assert frame_counts(out) == {"Rowing/v_Rowing_g01_c01": 4}
    assert (out / "mine").is_dir()
    (out / "prepare.json").write_text("{")
    assert prepare("--videos", videos, "--out", out) == 2
    assert "prepare.json: damaged" in capsys.readouterr().err
    assert prepare("--videos", videos, "--out", out, "--overwrite") == 0


# -- accidents ---------------------------------------------------------------------------------------------------------


class Deadly(str):
    """A path that kills the process which unpickles it, as a crash in a decoder would."""

    def __reduce__(self):
        return os._exit, (9,)


def job(video: str | Path, out: Path) -> Job:
    path = video if isinstance(video, Deadly) else str(video)
    return Job(path, str(out / "Class" / Path(str(video)).stem), 90, 0)


def test_a_dying_worker_takes_only_its_own_video_with_it(videos: Path, tmp_path: Path) -> None:
    good = [job(videos / name, tmp_path) for name in CLIPS]
    jobs = [good[0], job(Deadly("killer.avi"), tmp_path), *good[1:]]
    results = dict(run_jobs(jobs, 2))
    assert [results[j].num_frames for j in good] == list(CLIPS.values())
    assert "a worker process died while reading it" in results[jobs[1]].error
    assert len(results) == 4


def test_workers_that_all_die_end_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(engine, "_MOST_DEATHS", 2)
    with pytest.raises(PrepareError, match="2 worker processes died one after the other; is there enough memory"):
        list(run_jobs([job(Deadly(f"{i}.avi"), tmp_path) for i in range(4)], 1))


def test_a_full_disk_stops_the_run(videos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    write_bytes = Path.write_bytes

    def write(self: Path, data: bytes) -> int:
        if self.suffix != ".jpg":
            return write_bytes(self, data)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write)
    one = job(videos / "Rowing/v_Rowing_g01_c01.avi", tmp_path / "out")
    with pytest.raises(PrepareError, match=r"cannot write .*v_Rowing_g01_c01: No space left on device"):
        run_job(one)
    assert not list((tmp_path / "out").rglob("*.jpg")) and not list((tmp_path / "out").rglob(".partial*"))

    monkeypatch.setattr(preparing, "run_jobs", lambda jobs, workers: (run_job(j) and (j, Result()) for j in jobs))
    assert prepare("--videos", videos, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "No space left on device; make room. Finished work is kept; run the same command again" in error


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_at_any_moment(made: Path, tmp_path: Path, number: signal.Signals) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    for i in range(60):
        (videos / "A").mkdir(parents=True, exist_ok=True)
        os.link(made / "Diving/v_Diving_g08_c01.mp4", videos / f"A/{i}.mp4")
    code = (
        "import argparse, signal, sys; from r23d_jax.commands import prepare\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job is born ignoring it
        "p = argparse.ArgumentParser(); prepare.add_arguments(p); sys.exit(prepare.run(p.parse_args()))"
    )
    args = [sys.executable, "-c", code, "--videos", str(videos), "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    try:
        while len(list(out.glob("frames/A/[0-9]*"))) < 3 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert "stopped. Finished work is kept; run the same command again to continue." in errors
        assert not list(out.rglob(".partial*"))
        assert "Traceback" not in errors
    finished = frame_counts(out)
    whole = {name: count for name, count in finished.items() if ".partial" not in name}
    assert 3 <= len(whole) < 60
    assert set(whole.values()) == {9}
    again = subprocess.run(args, capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stderr.count("Traceback")) == (0, 0)
    assert frame_counts(out) == {f"A/{i}": 9 for i in range(60)}


@pytest.mark.slow
def test_a_stop_that_strikes_where_the_pool_holds_its_locks(made: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """An exception there would leave them held, and the pool would wait for ever."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    (videos / "A").mkdir(parents=True)
    for i in range(20):
        os.link(made / "Diving/v_Diving_g08_c01.mp4", videos / f"A/{i}.mp4")
    acquire: Callable[[Any], None] = futures._AcquireFutures.__enter__
    struck = []

    def strike(locks: Any) -> None:
        acquire(locks)
        if not struck and list(out.glob("frames/A/*")):
            struck.append(os.kill(os.getpid(), signal.SIGTERM))

    monkeypatch.setattr(futures._AcquireFutures, "__enter__", strike)
    assert prepare("--videos", videos, "--out", out) == 130
    assert struck and not list(out.rglob(".partial*"))
    assert "prepare: stopped. Finished work is kept" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert prepare("--videos", videos, "--out", out) == 0
    assert frame_counts(out) == {f"A/{i}": 9 for i in range(20)}


@pytest.mark.long
def test_a_stop_that_strikes_in_the_garbage_collector_is_not_lost(tmp_path: Path, monkeypatch, capsys) -> None:
    """Python drops what is raised there."""

    def strike(phase: str, info: dict) -> None:
        gc.callbacks.remove(strike)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

    def work(args: argparse.Namespace, told: dict) -> int:
        gc.callbacks.append(strike)
        gc.collect()
        time.sleep(10)
        return 0

    monkeypatch.setattr(command, "_run", work)
    assert prepare("--videos", tmp_path, "--out", tmp_path / "out") == 130
    assert capsys.readouterr().err.startswith("prepare: stopped. ")


@pytest.mark.real_clips
def test_real_clips(real_data: Path, tmp_path: Path) -> None:
    for clip in sorted((real_data / "ucf5/UCF-101").glob("H*/*_g01_c01.avi")) + sorted(
        (real_data / "ucf5/UCF-101").glob("P*/*_g08_c01.avi")
    ):
        link = tmp_path / "UCF-101" / clip.parent.name / clip.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(clip)
    lists = real_data / "ucf5/ucfTrainTestlist"
    out = tmp_path / "out"
    assert prepare("--videos", tmp_path, "--out", out, "--lists", lists, "--short-side", "64") == 0
    train, test = (index_frames(out / "frames", read_list(lists, side)) for side in ("train", "test"))
    assert test.names.tolist() == ["v_HandStandPushups_g01_c01"]
    assert sorted(train.names.tolist()) == ["v_PullUps_g08_c01", "v_PushUps_g08_c01"]
    for index in (train, test):
        for v, name in enumerate(index.names):
            (clip,) = (tmp_path / "UCF-101").glob(f"*/{name}.avi")
            assert index.num_frames[v] == len(list(iter_frames(clip)))
            assert cv2.imread(index.frames.path(v, int(index.num_frames[v]) - 1)).shape == (64, 85, 3)  # pyright: ignore
