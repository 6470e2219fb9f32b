"""`prepare --out URL`: shards with their index and lists in an object store, where a training finds them."""

import time
from pathlib import Path

import pytest

from r23d_jax.__main__ import main
from r23d_jax.config import DataConfig
from r23d_jax.data.find import packed_scan
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.sources import open_index
from r23d_jax.runtime import remote
from tests.hostile.reliability.harness import write_videos
from tests.remote.server import BUCKET, Faults, Server


def prepare(videos: Path | str, out: object, *more: str) -> int:
    return main(["prepare", "--videos", str(videos), "--out", str(out), "--workers", "1", "--shards", "2", *more])


def opened(out: object) -> VideoIndex:
    return open_index(DataConfig(source="packed", root=f"{out}/packed", lists=f"{out}/lists"), "train")


def frames(index: VideoIndex) -> list[list[bytes]]:
    return [[index.frames.read(video, frame) for frame in range(3)] for video in range(len(index))]


def shards_written(server: Server) -> int:
    return sum(method in ("PUT", "POST") and ".tfrecord" in path for method, path, _ in server.asked)


def test_the_same_shards_as_in_a_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_videos(tmp_path / "videos", 6, groups=3)
    assert prepare(tmp_path / "videos", tmp_path / "local", "--format", "packed") == 0
    near = opened(tmp_path / "local")
    capsys.readouterr()

    url = f"s3://{BUCKET}/prepared"
    server.faults = Faults(errors=2)
    assert prepare(tmp_path / "videos", url, "--format", "packed") == 0
    printed = capsys.readouterr().out
    assert f"6 videos are ready in {url} (6 of them new" in printed
    assert f"--config.data.source=packed --config.data.root={url}/packed --config.data.lists={url}/lists" in printed
    assert not list(remote.cached("prepared").rglob("*.*"))
    names = server.names("prepared")
    assert sum(".tfrecord" in name for name in names) == 2
    assert sum(name.endswith(".r23d_jax/packed.npz") for name in names) == 1
    assert {"prepare.json", "lists/train.csv"} <= set(names)

    with monkeypatch.context() as patched:
        patched.setattr(packed_scan, "_scan_shard", lambda *args: pytest.fail("the index is there"))
        far = opened(url)
        assert far.names.tolist() == near.names.tolist() and frames(far) == frames(near)

    server.asked.clear()
    assert prepare(tmp_path / "videos", url, "--format", "packed") == 0
    assert "(0 of them new" in capsys.readouterr().out and shards_written(server) == 0

    write_videos(tmp_path / "more" / "videos", 8, groups=4)
    assert prepare(tmp_path / "more" / "videos", url, "--format", "packed") == 0
    assert "8 videos are ready" in capsys.readouterr().out and shards_written(server) == 2


def test_a_store_that_is_lost_costs_nothing_that_is_done(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_videos(tmp_path / "videos", 4, groups=2)
    url = f"s3://{BUCKET}/interrupted"
    monkeypatch.setattr(remote, "PATIENCE", 0.5)
    real = remote.upload

    def upload(path: Path, to: str) -> None:
        server.faults = Faults(down_until=time.monotonic() + 60)
        real(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(remote, "upload", upload)
        assert prepare(tmp_path / "videos", url, "--format", "packed") == 2
    assert "no answer for 0 seconds" in capsys.readouterr().err
    server.faults = Faults()
    assert prepare(tmp_path / "videos", url, "--format", "packed") == 0
    assert "4 videos are ready" in (text := capsys.readouterr().out) and "(0 of them new" in text
    assert len(opened(url)) > 0


def test_frame_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path, f"s3://{BUCKET}/frames") == 2
    assert f"prepare: --out s3://{BUCKET}/frames: takes packed shards alone" in capsys.readouterr().err


def test_videos_in_a_store(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, near, far = tmp_path / "videos", tmp_path / "near", tmp_path / "far"
    write_videos(videos, 4, groups=2)
    (videos / "notes.txt").write_text("no video")
    url = server.upload(videos, "files")
    assert prepare(videos, near) == 0
    server.faults = Faults(errors=2)
    remote.write(b"no video", f"{url}/A/bad.avi")
    remote.write(b"", f"{url}/.hidden/v.avi")
    capsys.readouterr()
    assert prepare(url, far) == 3
    assert f"1 files: 1 .txt (e.g. {url}/notes.txt)" in capsys.readouterr().out

    def made(out: Path) -> dict[str, bytes]:
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.jpg")}

    assert made(far) == made(near) and len(made(near)) > 4
    assert (far / "broken.txt").read_text().startswith(f"{url}/A/bad.avi\t{url}/A/bad.avi: not a readable video")
    assert (far / "lists/train.csv").read_bytes() == (near / "lists/train.csv").read_bytes()
    assert prepare(f"{url}/nothing", tmp_path / "none") == 2
    assert f"--videos {url}/nothing: holds no video" in capsys.readouterr().err
