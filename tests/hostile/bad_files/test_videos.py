"""Bad videos, and odd but usable ones: decoded, prepared, and in odd places under odd names."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from r23d_jax.commands import prepare
from r23d_jax.data.find.packed import index_packed
from r23d_jax.data.make.video import VideoError, iter_frames
from tests.hostile.bad_files.corpus import VIDEOS, flip_bits, forbidden, pipe, video

ROOT = Path(__file__).resolve().parents[3]
COUNTS = {"one_frame": 1}  # of the intact ones; the others have 8


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_is_decoded_or_refused_in_words(name: str, tmp_path: Path) -> None:
    path = VIDEOS[name].write(tmp_path, name)
    if not VIDEOS[name].reason:
        assert sum(1 for _ in iter_frames(path)) == COUNTS.get(name, 8)
        return
    with pytest.raises(VideoError, match=VIDEOS[name].reason) as caught:
        list(iter_frames(path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_flipped_bits_never_crash(tmp_path: Path) -> None:
    for form, codec in (("avi", "mpeg4"), ("mp4", "libx264"), ("matroska", "libx264")):
        intact = video(form, codec, 20)
        for seed in range(8):
            path = tmp_path / f"{seed}.{form}"
            path.write_bytes(flip_bits(intact, 40, seed))
            try:
                frames = list(iter_frames(path))
            except VideoError as error:
                assert str(error).startswith(f"{path}: ")
            else:
                assert all(frame.ndim == 3 for frame in frames)


def test_bombs_do_not_take_memory(tmp_path: Path) -> None:
    """Neither does opening, where FFmpeg decodes frames to learn about the streams, nor decoding."""
    intact = tmp_path / "intact.mp4"
    intact.write_bytes(video())
    bombs = [VIDEOS[name].write(tmp_path, name) for name in ("png_bomb", "jpeg_bomb", "claims_huge")]
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from r23d_jax.data.make.video import VideoError, iter_frames\n"
        # Not ru_maxrss, which begins with the peak of the process that starts this one
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "def read(path):\n"
        "    try: list(iter_frames(Path(path)))\n"
        "    except VideoError: pass\n"
        "read(sys.argv[1])\n"
        "before = peak()\n"
        "for bomb in sys.argv[2:]: read(bomb)\n"
        "print(peak() - before)\n"
    )
    args = [sys.executable, "-c", code, str(intact), *map(str, bombs)]
    done = subprocess.run(args, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 48_000  # KiB; one frame of the PNG has 144 MB


# -- the command -------------------------------------------------------------------------------------------------------


def call(*args: str | Path) -> int:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return prepare.run(parser.parse_args([*map(str, args), "--workers", "2"]))


def broken_of(out: Path) -> dict[str, str]:
    return dict(line.split("\t") for line in (out / "broken.txt").read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("form", ["frames", "packed"])
def test_prepare_skips_and_lists_them_all(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, file in VIDEOS.items():
        file.write(tmp_path / "videos" / "A", name)
    assert call("--videos", tmp_path / "videos", "--out", tmp_path / "out", "--format", form) == 3
    printed = capsys.readouterr()
    bad = {name: file for name, file in VIDEOS.items() if file.reason}
    assert f"{len(VIDEOS) - len(bad)} videos are ready" in printed.out
    assert f"skipped {len(bad)} videos that could not be used; they are listed in" in printed.out
    assert "Traceback" not in printed.err
    broken = broken_of(tmp_path / "out")
    assert {Path(file).stem for file in broken} == set(bad)
    for file, reason in broken.items():
        assert re.search(bad[Path(file).stem].reason, reason) and reason.startswith(f"{file}: ")


def test_prepare_among_odd_names_and_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, intact = tmp_path / "videos" / "A", video(num_frames=2)
    folder.mkdir(parents=True)
    usable = ["two words", "line\nend", "quote'\"", "-rf", "$(reboot)", "%s{0}", "x" * 251]
    for name in usable:
        (folder / f"{name}.mp4").write_bytes(intact)
    (folder / os.fsdecode(b"latin-\xe9.mp4")).write_bytes(intact)
    (folder / "folder.mp4").mkdir()
    (folder / "folder.mp4" / "inside.mp4").write_bytes(intact)
    (folder / "link.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (folder / "itself.mp4").symlink_to("itself.mp4")
    (folder / "itself").symlink_to("itself")
    (folder / "up").symlink_to(tmp_path / "videos")
    with pipe(folder / "pipe.mp4"):
        assert call("--videos", tmp_path / "videos", "--out", tmp_path / "out") == 3
    reasons = {Path(file).name: reason for file, reason in broken_of(tmp_path / "out").items()}
    wanted = {
        "latin-\\udce9.mp4": "its name is not valid UTF-8; rename it",
        "link.mp4": "cannot be read (No such file or directory)",
        "itself.mp4": "cannot be read (Too many levels of symbolic links)",
        "pipe.mp4": "is no file, but a pipe or a device",
    }
    assert reasons.keys() == wanted.keys() and all(text in reasons[name] for name, text in wanted.items())
    made = {folder.name for folder in (tmp_path / "out/frames/A").iterdir()}
    assert made == {*usable, "folder.mp4"} and (tmp_path / "out/frames/A/folder.mp4/inside").is_dir()
    assert f"{len(usable) + 1} videos are ready" in capsys.readouterr().out


def test_the_longest_name_can_be_packed(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / ("x" * 251 + ".mp4")).write_bytes(video(num_frames=2))
    assert call("--videos", tmp_path / "videos", "--out", tmp_path / "out", "--format", "packed") == 0
    index = index_packed(tmp_path / "out/packed", None, "videos")  # pyright: ignore[reportArgumentType]
    assert index.names.tolist() == ["x" * 251] and index.num_frames.tolist() == [2]


def test_what_may_not_be_read_is_listed(tmp_path: Path) -> None:
    for name in ("open/a.mp4", "closed/b.mp4", "open/c.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).write_bytes(video(num_frames=2))
    with forbidden(tmp_path / "videos/closed", tmp_path / "videos/open/c.mp4"):
        assert call("--videos", tmp_path / "videos", "--out", tmp_path / "out") == 3
    reasons = {Path(file).name: reason for file, reason in broken_of(tmp_path / "out").items()}
    assert reasons.keys() == {"closed", "c.mp4"}
    assert all("Permission denied" in reason for reason in reasons.values())
