"""Packed shards in an object store give the batches that they give on a local disk, or an error."""

import dataclasses
import errno
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r23d_jax.config import ConfigError, DataConfig
from r23d_jax.data.find import packed_scan
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.frames import PackedFrames, VideoIndex
from r23d_jax.data.make.record import RECORD
from r23d_jax.data.read.broken import BrokenLog, diagnose
from r23d_jax.data.read.pipeline import train_batches
from r23d_jax.data.sources import open_index
from r23d_jax.runtime import disk, remote
from r23d_jax.runtime.blocks import Blocks
from tests.remote.packed import FRAMES, NAMES, jpegs
from tests.remote.server import BUCKET, Faults, Server

GIVEN: Any = {"seed": 1, "global_batch_size": 4, "start_step": 0}


@pytest.fixture
def local(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "made"))


def config_of(root: object) -> DataConfig:
    return DataConfig(
        source="packed", root=f"{root}/packed", lists=f"{root}/lists", num_frames=8, short_side=48, crop_size=32
    )


def batches(root: object, steps: int = 6, index: VideoIndex | None = None) -> list[dict[str, np.ndarray]]:
    cfg = config_of(root)
    index = index or open_index(cfg, "train")
    return list(train_batches(index, cfg, **GIVEN, num_steps=steps, broken=BrokenLog(cfg)))


def assert_same(ours: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]]) -> None:
    assert len(ours) == len(theirs) > 0
    for own, other in zip(ours, theirs, strict=True):
        assert own.keys() == other.keys()
        for name in own:
            np.testing.assert_array_equal(own[name], other[name], err_msg=name)


@pytest.mark.parametrize("indexed", [True, False])
def test_the_same_index_and_the_same_batches(
    indexed: bool, local: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = batches(local)  # saves the index beside the shards
    near = open_index(config_of(local), "test")
    if not indexed:
        shutil.rmtree(next(local.rglob(".r23d_jax")))
    url = server.upload(local, f"same{indexed}")
    server.asked.clear()
    far = open_index(config_of(url), "test")
    fetched = {path for _, path, wide in server.asked if wide and ".tfrecord" in path}
    assert len(fetched) == (0 if indexed else 3)
    assert near.names.tolist() == far.names.tolist() and near.missing == far.missing == ()
    assert np.array_equal(near.num_frames, far.num_frames) and np.array_equal(near.labels, far.labels)
    assert near.rates is not None and far.rates is not None and np.array_equal(near.rates, far.rates)
    assert far.layout == f"packed: 3 TFRecord shard(s) in {url}/packed"
    assert isinstance(far.frames, PackedFrames)
    number = NAMES.index(str(far.names[2]))
    assert [far.frames.read(2, frame) for frame in range(FRAMES)] == jpegs(number)
    assert far.frames.locate(2, 3).startswith(f"{url}/packed/r23d_videos/")
    assert "but all can be read now" in diagnose(far, 2).reason
    monkeypatch.setattr(packed_scan, "_scan_shard", lambda *args: pytest.fail("the index was saved"))
    assert_same(batches(url), wanted)
    size = sum(path.stat().st_size for path in local.rglob("*.tfrecord*"))
    assert 0 < sum(path.stat().st_size for path in remote.cached("blocks").rglob("*") if path.is_file()) <= size


def test_an_outdated_index_in_the_store_is_made_again_once(
    local: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = batches(local)
    (saved,) = local.rglob(".r23d_jax/*.npz")
    with np.load(saved) as arrays:
        older = {name: arrays[name] for name in arrays.files if name != "checks"}
    np.savez(saved, **older)
    url = server.upload(local, "outdated")
    assert len(open_index(config_of(url), "train")) == 12
    monkeypatch.setattr(packed_scan, "_scan_shard", lambda *args: pytest.fail("it was made and saved"))
    assert_same(batches(url), wanted)


def test_a_full_disk_is_no_damage_of_a_shard(made: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.upload(made, "full")
    for name in [name for name in server.names("full") if name.endswith(".npz")]:
        server.client().delete_object(Bucket=BUCKET, Key=f"full/{name}")

    def write_ranges(url: str, size: int, file: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(remote, "write_ranges", write_ranges)
        with pytest.raises(disk.WriteError, match=r"cannot be written \(No space left on device\): make room"):
            open_index(config_of(url), "train")
    index = open_index(config_of(url), "train")
    assert len(index) == 12 and not index.notes


def test_every_fault_at_once_changes_no_batch(local: Path, server: Server) -> None:
    wanted = batches(local)
    url = server.upload(local, "faults")
    index = open_index(config_of(url), "train")
    server.faults = Faults(".tfrecord", delay=0.05, errors=4, cuts=4, flips=4, down_until=time.monotonic() + 1)
    assert_same(batches(url, index=index), wanted)
    assert remote.RETRIES.count >= 2
    assert not (server.faults.errors or server.faults.cuts or server.faults.flips)


def test_many_fetches_wait_while_one_thread_decodes(
    local: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.upload(local, "waiting")
    index, cfg = open_index(config_of(url), "train"), dataclasses.replace(config_of(url), num_workers=1)
    waiting, most, read_all = set(), 0, Blocks.read_all

    def slow(*given: Any) -> list[bytes]:
        nonlocal most
        waiting.add(threading.get_ident())
        most = max(most, len(waiting))
        time.sleep(0.2)
        try:
            return read_all(*given)
        finally:
            waiting.remove(threading.get_ident())

    monkeypatch.setattr(Blocks, "read_all", slow)
    assert_same(list(train_batches(index, cfg, **GIVEN, num_steps=24, broken=BrokenLog(cfg))), batches(local, 24))
    assert most > 2


def test_faults_while_the_shards_are_indexed(made: Path, local: Path, server: Server) -> None:
    shutil.rmtree(local / "packed")
    shutil.copytree(made / "packed", local / "packed", ignore=shutil.ignore_patterns(".r23d_jax"))
    url = server.upload(local, "indexing")
    server.faults = Faults(".tfrecord", errors=3, cuts=3, flips=2)
    index = open_index(config_of(url), "train")
    assert len(index) == 12 and not index.notes
    assert not server.faults.flips
    assert remote.RETRIES.count >= 2


def test_a_store_that_is_lost_ends_the_training(local: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other video takes the place of one that could not be fetched."""
    batches(local, 1)
    url = server.upload(local, "lost")
    index = open_index(config_of(url), "train")
    monkeypatch.setattr(remote, "PATIENCE", 0.5)
    server.faults = Faults(down_until=time.monotonic() + 120)
    began = time.monotonic()
    with pytest.raises(remote.RemoteError, match=r"s3://.*no answer for 0 seconds .*run the same command again"):
        batches(url, index=index)
    assert time.monotonic() - began < 60


def test_a_damaged_record_is_named_by_its_url(local: Path, server: Server) -> None:
    shard = sorted(local.rglob("*.tfrecord*"))[0]
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    url = server.upload(local, "damaged")
    (note,) = open_index(config_of(url), "train").notes
    assert note.startswith(f"{url}/packed/r23d_videos/") and "1 damaged video(s) left out" in note


def test_an_object_that_was_replaced(local: Path, server: Server) -> None:
    """Its size is the same, so the index looks current."""
    batches(local, 1)
    url = server.upload(local, "replaced")
    for shard in local.rglob("*.tfrecord*"):
        key = f"replaced/{shard.relative_to(local)}"
        server.client().put_object(Bucket=BUCKET, Key=key, Body=bytes(reversed(shard.read_bytes())))
    with pytest.raises(remote.RemoteError, match="has another checksum than the index of the shards"):
        batches(url)


def test_what_is_refused(local: Path, server: Server) -> None:
    url = server.upload(local / "lists", "refused/lists").removesuffix("/lists")
    cfg = config_of(url)
    cfg.source = "frames"
    with pytest.raises(ConfigError, match=r"root=s3://.*only packed shards .*--format packed.*--config\.data\.source"):
        open_index(cfg, "train")
    with pytest.raises(DataError, match=r"config\.data\.root=s3://videos/refused/packed: no such folder"):
        open_index(config_of(url), "train")


def test_credentials_for_the_folder_of_the_data_alone(
    local: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, files = server.upload(local, "alone"), remote.files

    def refusing(url: str) -> dict[str, remote.Info]:
        if url.endswith(RECORD):
            raise remote.Refused(f"{url}: access is refused")
        return files(url)

    monkeypatch.setattr(remote, "files", refusing)
    assert len(open_index(config_of(url), "train")) == 12


def test_lists_and_the_record_are_found_beside_the_shards(local: Path, server: Server) -> None:
    (local / RECORD).write_text('{"flow": "dis", "flow_bound": 20, "short_side": 48}')
    url = server.upload(local, "beside")
    cfg = config_of(url)
    cfg.lists = ""
    with pytest.raises(ConfigError, match=r"root=s3://videos/beside/packed: holds optical flow \(dis\)"):
        open_index(cfg, "train")
    server.client().put_object(Bucket=BUCKET, Key="beside/lists/v_Diving_g01_c01.avi", Body=b"a video")
    cfg.input, cfg.mean, cfg.std = "flow", (0.5, 0.5), (0.2, 0.2)
    assert len(open_index(cfg, "train")) == 12
    assert not list(remote.cached("copies").rglob("*.avi"))
