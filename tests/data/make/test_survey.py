"""A look at videos before they are prepared: copies, damage, and which clips are of one recording."""

from pathlib import Path

import numpy as np
import pytest

from r23d_jax.data.find.class_folders import Clip
from r23d_jax.data.make import survey
from r23d_jax.data.make.search import VideoFile, find_videos
from tests.commands.test_predict import write_video


def clips(*paths: str) -> list[Clip]:
    return [Clip(path, path.split("/")[0], tuple(path.split("/"))) for path in paths]


def groups(paths: list[str], signs: dict[str, int] | None = None) -> tuple[dict[str, list[str]], list[str]]:
    """The members of each group, and the lines for the log. Without signs all first frames differ."""
    rng = np.random.default_rng(0)
    # numbers of 64 bits that differ in about half of them
    drawn = {path: int(rng.integers(0, 2**63)) for path in paths} | (signs or {})
    seen = {path: survey.Seen(320, 240, 25.0, sign) for path, sign in drawn.items()}
    found, notes = survey.find_groups(clips(*paths), seen)
    members: dict[str, list[str]] = {}
    for clip in found:
        members.setdefault(clip.group, []).append(clip.path)
    return members, notes


def test_numbers_as_in_ucf101() -> None:
    paths = [f"{c}/v_{c}_g{g:02}_c{k:02}" for c in ("a", "b") for g in range(4) for k in range(2)]
    members, notes = groups(paths)
    assert {name: len(own) for name, own in members.items()} == {f"{c}_g{g:02}": 2 for c in "ab" for g in range(4)}
    assert notes == ["8 recordings by the numbers in their names, such as _g01_, e.g. a_g00 of a/v_a_g00_c00"]


def test_folders_of_persons_are_one_group_in_all_classes() -> None:
    members, notes = groups([f"{c}/{p}/{k}" for c in ("a", "b") for p in ("ann", "bob", "cem") for k in range(2)])
    assert {name: len(own) for name, own in members.items()} == {"ann": 4, "bob": 4, "cem": 4}
    assert notes == ["3 recordings by the folders in their class folders, e.g. ann of a/ann/0"]


@pytest.mark.parametrize(
    "name", ["match{m}_clip{k}", "match{m}-{k:03}", "Match {m} part {k}", "x_{m:06}_{k:06}", "d{m}_c{k}"]
)
def test_names_that_share_a_beginning(name: str) -> None:
    paths = [f"{c}/{name.format(m=m, k=k)}" for c in ("a", "b") for m in range(3) for k in range(3)]
    members, notes = groups(paths)
    assert sorted(map(len, members.values())) == [3] * 6
    assert notes[0].startswith("6 recordings by the beginning that file names share, e.g. a/")


def test_start_and_end_of_a_clip_are_not_part_of_the_beginning() -> None:
    paths = [
        f"a/{name}_{t:06}_{t + 10:06}" for name in ("dQw4w9WgXcQ", "x-7_Q", "oHg5SJYRHA0") for t in range(0, 40, 10)
    ]
    members, _ = groups(paths)
    assert sorted(map(len, members.values())) == [4, 4, 4]


@pytest.mark.parametrize("name", ["{}", "IMG_{:04}", "video{}", "clip {}"])
def test_numbers_that_only_count_make_no_recording(name: str) -> None:
    paths = [f"{c}/{name.format(k)}" for c in ("a", "b") for k in range(6)]
    members, notes = groups(paths)
    assert sorted(map(len, members.values())) == [1] * 12
    assert notes == [
        "12 of 12 videos are groups of their own: put clips of one recording into a folder below that of their class, "
        "because with some of them on each side the accuracy is too high"
    ]


def test_equal_first_frames_join_across_classes() -> None:
    paths = [f"{c}/{k}" for c in ("a", "b") for k in range(6)]
    members, notes = groups(paths, {"a/0": 0b1111, "a/1": 0b1110, "b/5": 0b111, "b/4": 0b1111 << 40})
    assert members["a/0"] == ["a/0", "a/1", "b/5"] and len(members) == 10
    assert notes[0] == "2 more recordings were joined, because their first frames look the same, e.g. a/0 and a/1"


def test_a_fixed_camera_joins_nothing() -> None:
    paths = [f"a/{k}" for k in range(6)]
    members, notes = groups(paths, dict.fromkeys(paths, 12345))
    assert len(members) == 6 and "a fixed camera, or one recording; not joined" in notes[0]


def test_black_first_frames_join_nothing() -> None:
    members, _ = groups([f"a/{k}" for k in range(6)], {"a/0": -1, "a/1": -1})
    assert len(members) == 6


def test_signs_of_frames() -> None:
    rng = np.random.default_rng(0)
    frame = np.kron(rng.integers(0, 256, (12, 16, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    darker = (frame * 0.8).astype(np.uint8)
    apart = lambda a, b: bin(survey._signs(a) ^ survey._signs(b)).count("1")  # noqa: E731
    assert apart(frame, darker) <= survey._SIGNS_APART < apart(frame, frame[:, ::-1])
    assert survey._signs(np.full((120, 160, 3), 7, np.uint8)) == -1


def test_copies_and_damage(tmp_path: Path) -> None:
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / f"{name}.avi", 12, hash(name) % 1000)
    for copy, source in (("a/2", "a/0"), ("b/2", "b/0"), ("a/3", "b/0")):
        (tmp_path / f"{copy}.avi").write_bytes((tmp_path / f"{source}.avi").read_bytes())
    (tmp_path / "a/4.avi").write_bytes(b"RIFF but no video")
    videos: list[VideoFile] = find_videos(tmp_path, tmp_path / "out", log=print).videos
    both = "the same file is in the classes a and b; keep the right one"
    assert survey.find_copies(videos) == {
        str(tmp_path / "a/2.avi"): f"is a copy of {tmp_path / 'a/0.avi'}",
        **{str(tmp_path / f"{name}.avi"): both for name in ("b/0", "b/2", "a/3")},
    }
    seen, broken = survey.look(videos)
    assert list(broken) == [str(tmp_path / "a/4.avi")] and broken[str(tmp_path / "a/4.avi")].startswith(
        "not a readable"
    )
    one = seen["a/0"]
    assert (one.width, one.height, one.rate) == (64, 48, 25.0)
    lines = survey.describe([video for video in videos if video.target in seen], seen, dict.fromkeys(seen, 12))
    assert lines[0] == "sizes: 64x48 (7)" and lines[1] == "frames a second: 25 (7)"
    assert lines[3].split() == ["a", "4", "0.5", "0.5", "0.5"]
