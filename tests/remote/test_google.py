"""Google Cloud Storage holds files, packed shards and runs as S3 does, with which everything else is tested."""

import shutil
from pathlib import Path

import pytest

from r23d_jax.data.sources import open_index
from r23d_jax.runtime import remote
from tests.remote.server import BUCKET, Faults, Server
from tests.remote.test_shards import assert_same, batches, config_of

# gcsfs gives aiohttp what it sends as bytes
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


def test_files(google: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = google.url_of("files")
    assert remote.files(url) == {} and remote.read(f"{url}/none") is None
    remote.write(b"hello world", f"{url}/inner/one.txt")
    before = remote.files(url)["inner/one.txt"]
    remote.write(b"hello there", f"{url}/inner/one.txt")
    after = remote.files(f"{url}/inner/one.txt")[""]
    assert after.size == before.size == 11 and after.stamp != before.stamp
    ranges = [(f"{url}/inner/one.txt", 0, 5), (f"{url}/inner/one.txt", 6, 11)]
    assert remote.read_ranges(ranges) == [b"hello", b"there"]
    assert remote.endings(f"{url}/inner/one") == [f"{url}/inner/one.txt"]

    monkeypatch.setattr(remote, "_LARGE", 1 << 19)
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * (1 << 12))
    remote.upload(large, f"{url}/large")
    copy = remote.copied(url)
    assert (copy / "large").read_bytes() == large.read_bytes() and (copy / "inner/one.txt").is_file()

    remote.remove(f"{url}/large")
    remote.remove(f"{url}/large")
    assert sorted(remote.files(url)) == google.names("files") == ["inner/one.txt"]
    remote.remove_folder(url)
    assert remote.files(url) == {}
    with pytest.raises(remote.RemoteError, match="gs://nowhere/one: there is no such bucket; make it, or correct"):
        remote.write(b"", "gs://nowhere/one")


@pytest.mark.parametrize("large", [False, True])
def test_what_arrives_is_what_was_sent(
    large: bool, google: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_LARGE", 0 if large else 1 << 26)
    url, path = google.url_of("sent/file"), tmp_path / "file"
    for content in (bytes(5000) + b"\r", b"\n" * 5000 + b"\r\n"):
        path.write_bytes(content)
        google.faults = Faults(garbles=1)
        remote.upload(path, url)
        assert not google.faults.garbles and remote.read(url) == content


def test_the_same_batches_whatever_the_server_does(made: Path, google: Server, tmp_path: Path) -> None:
    local = shutil.copytree(made, tmp_path / "made", ignore=shutil.ignore_patterns(".r23d_jax"))
    wanted = batches(local)
    url = google.upload(local, "same")
    index = open_index(config_of(url), "train")
    google.faults = Faults(".tfrecord", delay=0.02, errors=2, cuts=2, flips=2)
    assert_same(batches(url, index=index), wanted)
    assert not (google.faults.errors or google.faults.cuts or google.faults.flips)


@pytest.mark.usefixtures("google")
def test_the_kind_of_a_bucket_is_not_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """gcsfs would ask at each file, and warn, if the credentials may not know."""
    remote.write(b"", f"gs://{BUCKET}/kind")
    assert not caplog.records and type(remote._system("gs")).__module__ == "gcsfs.core"
