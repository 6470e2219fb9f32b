"""Decoding with Apache Beam: the same shards as without it, and everything that can go wrong."""

import sys
from pathlib import Path

import pytest

from r23d_jax.data.make import jobs as engine
from r23d_jax.runtime import disk
from tests.data.make.test_prepare import WANT, lists, made, packed_bytes, prepare, videos

__all__ = ["lists", "made", "videos"]  # fixtures
DIRECT = ("--format", "packed", "--beam-runner", "DirectRunner")


def files(folder: Path) -> dict[str, bytes]:
    """The content of all files but the index, which the first reader adds."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if ".r23d_jax/" not in name}


@pytest.fixture
def beam() -> None:
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install -r requirements-beam.txt")


@pytest.mark.beam
@pytest.mark.parametrize("options", ["", "direct_running_mode=multi_processing,direct_num_workers=2"])
def test_shards_hold_what_they_hold_without_beam(
    beam: None, videos: Path, lists: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: str
) -> None:
    (videos / "Diving/broken.avi").write_bytes(b"no video")
    out = tmp_path / "out"
    extra = ["--beam-options", options] if options else []
    assert prepare("--videos", videos, "--out", out, *DIRECT, *extra, "--shards", "2") == 3
    said = capfd.readouterr().out
    assert "4 videos go to Apache Beam's DirectRunner" in said and f"3 videos are ready in {out} (" in said
    assert (out / "broken.txt").read_text().startswith(f"{videos}/Diving/broken.avi\t")
    assert not (out / ".staging").exists()
    assert len(list((out / "packed").rglob("*.tfrecord-*"))) == 2
    alone = tmp_path / "alone"
    assert prepare("--videos", videos, "--out", alone, "--format", "packed", "--shards", "2") == 3
    content = packed_bytes(out, lists)
    assert files(out / "packed") == files(alone / "packed")
    assert {name: len(frames) for name, frames in content.items()} == {
        name.split("/")[1]: num_frames for name, num_frames in WANT.items()
    }


@pytest.mark.beam
def test_a_second_run_packs_only_if_there_is_something_new(
    beam: None, videos: Path, lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert prepare("--videos", videos, "--out", out, "--format", "packed") == 0
    (shard,) = (out / "packed").rglob("*.tfrecord-*")
    before = shard.stat()
    assert prepare("--videos", videos, "--out", out, *DIRECT) == 0
    assert shard.stat() == before
    (videos / "Diving/v_Diving_g08_c02.mp4").write_bytes((videos / "Diving/v_Diving_g08_c01.mp4").read_bytes())
    assert prepare("--videos", videos, "--out", out, *DIRECT) == 0
    assert f"4 videos are ready in {out} (" in capsys.readouterr().out
    assert prepare("--videos", videos / "Rowing", "--out", out, *DIRECT) == 2
    assert "its shards hold 3 videos that are not in --videos" in capsys.readouterr().err


@pytest.mark.beam
def test_what_could_not_be_decoded_is_tried_again_when_it_has_changed(
    beam: None, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bad = tmp_path / "out", videos / "Diving/v_Diving_g09_c01.mp4"
    bad.write_bytes(b"no video")
    for said in ("4 videos go to Apache Beam", ""):
        assert prepare("--videos", videos, "--out", out, *DIRECT) == 3
        printed = capsys.readouterr().out
        assert f"3 videos are ready in {out} (" in printed and said in printed
        assert bool(said) == ("go to Apache Beam" in printed)
        assert (out / "broken.txt").read_text().startswith(f"{bad}\t")
    bad.write_bytes((videos / "Diving/v_Diving_g08_c01.mp4").read_bytes())
    assert prepare("--videos", videos, "--out", out, *DIRECT) == 0
    assert f"4 videos are ready in {out} (" in capsys.readouterr().out


@pytest.mark.beam
def test_a_packed_video_that_cannot_be_decoded_now_stays_packed(
    beam: None, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bad = tmp_path / "out", videos / "Diving/v_Diving_g08_c01.mp4"
    assert prepare("--videos", videos, "--out", out, *DIRECT) == 0
    (shard,) = (out / "packed").rglob("*.tfrecord-*")
    before = shard.stat()
    (videos / "Diving/v_Diving_g08_c02.mp4").write_bytes(bad.read_bytes())
    bad.write_bytes(b"no video")
    assert prepare("--videos", videos, "--out", out, *DIRECT) == 2
    said = capsys.readouterr().err
    assert f"{bad}: not a readable video" in said and "but it is in the existing shards, which were not changed" in said
    assert shard.stat() == before


@pytest.mark.beam
def test_nothing_that_can_be_decoded(beam: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "broken.avi").write_bytes(b"no video")
    assert prepare("--videos", folder, "--out", tmp_path / "out", *DIRECT) == 3
    assert f"0 videos are ready in {tmp_path / 'out'} (" in capsys.readouterr().out
    assert "broken.avi" in (tmp_path / "out/broken.txt").read_text()
    assert not (tmp_path / "out/packed").exists()


@pytest.mark.beam
def test_a_failing_pipeline_leaves_what_was_there(
    beam: None, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert prepare("--videos", videos / "Rowing", "--out", out, "--format", "packed") == 0
    (shard,) = (out / "packed").rglob("*.tfrecord-*")
    before = shard.stat()
    from r23d_jax.data.make import beam_jobs

    def crash(job: engine.Job) -> None:
        raise MemoryError("a worker is out of memory")

    monkeypatch.setattr(engine, "encoded_frames", crash)
    assert prepare("--videos", videos, "--out", out, *DIRECT) == 2
    said = capsys.readouterr().err
    assert "prepare: Apache Beam's DirectRunner failed: " in said and "a worker is out of memory" in said
    assert "Finished work is kept" in said and shard.stat() == before

    def full(path: Path, content: str, durable: bool) -> None:
        raise disk.WriteError(f"{path}: cannot be written (No space left on device)")

    (videos / "Rowing/broken.avi").write_bytes(b"no video")
    monkeypatch.undo()
    monkeypatch.setattr(beam_jobs.disk, "write_atomically", full)
    assert prepare("--videos", videos, "--out", out, *DIRECT) == 2
    assert "No space left on device" in capsys.readouterr().err and shard.stat() == before


@pytest.mark.beam
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--beam-runner", "NoRunner"], "--beam-runner NoRunner: "),
        (
            ["--beam-runner", "DirectRunner", "--beam-options", "direct_num_workers=many"],
            "--beam-options direct_num_workers=many: argument --direct_num_workers: invalid int value: 'many'",
        ),
    ],
)
def test_what_beam_does_not_know(
    beam: None, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert prepare("--videos", videos, "--out", tmp_path / "out", "--format", "packed", *args) == 2
    assert f"prepare: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--beam-runner", "DirectRunner"], "--beam-runner DirectRunner: makes packed shards only; add --format pack"),
        (["--beam-options", "a=1"], "--beam-options: are for --beam-runner, which is not given"),
        (
            list(DIRECT),
            "--beam-runner DirectRunner: Apache Beam is not installed: pip install -r requirements-beam.txt",
        ),
    ],
)
def test_wrong_use(
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "r23d_jax.data.make.beam_jobs", raising=False)
    assert prepare("--videos", videos, "--out", tmp_path / "out", *args) == 2
    assert f"prepare: {message}" in capsys.readouterr().err
