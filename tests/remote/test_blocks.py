"""Parts of files in an object store: right or an error, whatever the store and the cache do."""

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from r23d_jax.config import UserError
from r23d_jax.runtime import blocks, remote
from r23d_jax.runtime.blocks import BLOCK, Blocks
from tests.remote.server import BUCKET, Faults, Server, clean_environment, s3_server

CONTENT = [np.random.default_rng(n).integers(0, 256, size, np.uint8) for n, size in enumerate((5 * BLOCK + 7, BLOCK))]
# (file, spans): inside a block, across blocks, the whole, the end, nothing
REQUESTS = [
    (0, [(10, 100)]),
    (0, [(BLOCK - 5, 10), (3 * BLOCK, 2 * BLOCK)]),
    (1, [(0, BLOCK)]),
    (0, [(5 * BLOCK, 7)]),
    (1, [(5, 0)]),
]
WANTED = [b"".join(CONTENT[file][a : a + n].tobytes() for a, n in spans) for file, spans in REQUESTS]


@pytest.fixture
def stored(server: Server, tmp_path: Path) -> list[str]:
    urls = []
    for number, content in enumerate(CONTENT):
        (tmp_path / "up").mkdir(exist_ok=True)
        content.tofile(tmp_path / "up" / f"{number}.bin")
    for number in range(len(CONTENT)):
        urls.append(f"{server.upload(tmp_path / 'up', 'blocks')}/{number}.bin")
    server.asked.clear()
    return urls


def opened(urls: list[str], most_bytes: float = 1e9) -> Blocks:
    checks = np.concatenate([blocks.checksums(content) for content in CONTENT]).astype(np.uint32)
    return Blocks(urls, np.array([len(content) for content in CONTENT]), checks, most_bytes)


def cached_files() -> list[Path]:
    return sorted(path for path in remote.cached("blocks").rglob("*") if path.is_file())


def test_only_the_blocks_asked_for_are_fetched_and_once(stored: list[str], server: Server) -> None:
    reader = opened(stored)
    assert reader.read_all(REQUESTS[:1]) == WANTED[:1]
    assert [row[2] for row in server.asked] == [f"bytes=0-{BLOCK - 1}"]
    assert reader.read_all(REQUESTS) == WANTED
    assert sorted(row[2] for row in server.asked[1:]) == sorted(
        [f"bytes={BLOCK}-{2 * BLOCK - 1}", f"bytes={3 * BLOCK}-{5 * BLOCK + 6}", f"bytes=0-{BLOCK - 1}"]
    )
    asked = len(server.asked)
    assert opened(stored).read_all(REQUESTS) == WANTED  # as another process would
    assert len(server.asked) == asked
    assert remote.RETRIES.count == 0


@pytest.mark.parametrize("fault", ["delay", "errors", "cuts", "flips", "down_until"])
def test_a_store_that_fails_for_a_while(
    fault: str, stored: list[str], server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    amount = {"delay": 0.5, "errors": 3, "cuts": 3, "flips": 3, "down_until": time.monotonic() + 2}
    server.faults = Faults(**{fault: amount[fault]})  # pyright: ignore[reportArgumentType]
    assert opened(stored).read_all(REQUESTS) == WANTED
    if fault == "delay":
        assert remote.RETRIES.count == 0
    else:
        assert remote.RETRIES.count > 0
        assert "tried again (1 retries so far)" in capsys.readouterr().err


def test_what_is_not_inside_the_file_is_unreadable(stored: list[str]) -> None:
    """As in a file of this machine; an index that says so is damaged, or forged."""
    beyond = [(1, [(0, 5), (BLOCK - 5, 10)]), (1, [(2**62, 5)]), REQUESTS[0]]
    assert opened(stored).read_all(beyond) == [b"", b"", WANTED[0]]


def test_damage_in_the_cache_is_fetched_again(stored: list[str], server: Server) -> None:
    reader = opened(stored)
    reader.read_all(REQUESTS)
    files = cached_files()
    assert len(files) == 3
    files[0].write_bytes(b"")
    content = bytearray(files[1].read_bytes())
    content[1000] ^= 1
    files[1].write_bytes(content)
    server.asked.clear()
    assert reader.read_all(REQUESTS) == WANTED
    assert len(server.asked) == 2


def test_the_cache_is_bounded(stored: list[str]) -> None:
    most = 4 * BLOCK
    reader = opened(stored, most)
    for _ in range(3):
        for file, size in ((0, 6), (1, 1)):
            for number in range(size):
                length = min(BLOCK, len(CONTENT[file]) - number * BLOCK)
                assert reader.read_all([(file, [(number * BLOCK, length)])]) == [
                    CONTENT[file][number * BLOCK : number * BLOCK + length].tobytes()
                ]
                assert sum(512 * path.stat().st_blocks for path in cached_files()) <= most
    assert cached_files()


def test_the_oldest_files_of_the_cache_go_first(stored: list[str], server: Server) -> None:
    reader = opened(stored)
    reader.read_all(REQUESTS)
    files = cached_files()
    for file in files[1:]:
        os.utime(file, (0, 0))
    earlier = remote.cached("blocks") / "0123456789abcdef" / "7-00000000"  # of a version with a file for each block
    earlier.parent.mkdir()
    earlier.write_bytes(bytes(100))
    blocks._cut_back(remote.cached("blocks"), 512 * files[0].stat().st_blocks)
    assert not earlier.parent.exists()
    assert cached_files() == files[:1]
    server.asked.clear()
    assert reader.read_all(REQUESTS) == WANTED
    assert server.asked
    server.asked.clear()
    assert opened(stored).read_all(REQUESTS) == WANTED and not server.asked


def test_a_signed_address_serves_a_file_until_it_fails(
    stored: list[str], server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the store's own package reads the file for a while; its requests are signed in a header."""

    def asked() -> list[str]:
        """The paths asked for since the last call, once each."""
        paths = {path for _, path, _ in server.asked}
        server.asked.clear()
        return sorted(paths)

    def read() -> None:
        shutil.rmtree(remote.cached("blocks"), ignore_errors=True)
        assert opened(stored).read_all(REQUESTS) == WANTED

    read()
    read()
    signed_paths = asked()
    assert len(signed_paths) == 2 and all("?X-Amz-Algorithm=AWS4-HMAC-SHA256&" in path for path in signed_paths)
    server.faults = Faults("X-Amz-Signature", errors=1000)
    read()
    assert any("?" not in path for path in asked())
    assert remote.RETRIES.count == 3  # runs of blocks
    read()
    assert all("?" not in path for path in asked())
    said = capsys.readouterr().err
    assert ".bin: status 500; tried again (1 retries so far)" in said and "X-Amz" not in said
    server.faults = Faults()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    read()
    assert all("X-Amz-Signature" in path for path in asked())
    assert remote.RETRIES.count == 3


def test_a_cache_that_cannot_be_written_is_reported_once(
    stored: list[str], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache" / "remote").mkdir(parents=True)
    (tmp_path / "cache" / "remote" / "blocks").write_text("a file is in the way")
    reader = opened(stored)
    assert reader.read_all(REQUESTS) == WANTED == reader.read_all(REQUESTS)
    assert capsys.readouterr().err.count("blocks are fetched again each time") == 1


def test_threads_share_what_is_on_its_way(stored: list[str], server: Server) -> None:
    server.faults = Faults(delay=0.3)
    reader, barrier = opened(stored), threading.Barrier(8)

    def read(_: int) -> list[bytes]:
        barrier.wait()
        return reader.read_all(REQUESTS)

    with ThreadPoolExecutor(8) as pool:
        assert all(answer == WANTED for answer in pool.map(read, range(8)))
    asked = [row[1:] for row in server.asked]
    assert len(asked) == len(set(asked))


def test_a_store_that_does_not_come_back(stored: list[str], server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 1.0)
    server.faults = Faults(down_until=time.monotonic() + 60)
    reader = opened(stored)
    with pytest.raises(remote.RemoteError, match=r"s3://videos/blocks/0\.bin: no answer for 1 seconds .*run the same"):
        reader.read_all(REQUESTS)
    server.faults = Faults()
    began = time.monotonic()
    with pytest.raises(remote.RemoteError, match="no answer"):
        reader.read_all(REQUESTS)
    assert time.monotonic() - began < 0.1


def test_a_file_that_was_changed_or_removed(stored: list[str], server: Server, tmp_path: Path) -> None:
    CONTENT[1].tofile(tmp_path / "other.bin")
    server.client().put_object(Bucket=BUCKET, Key="blocks/0.bin", Body=CONTENT[0][::-1].tobytes())
    with pytest.raises(remote.RemoteError, match=r"0\.bin: block \d has another checksum .* was it changed"):
        opened(stored).read_all(REQUESTS)
    server.client().delete_object(Bucket=BUCKET, Key="blocks/1.bin")
    with pytest.raises(remote.RemoteError, match=r"1\.bin: there is no such file"):
        opened(stored).read_all(REQUESTS[2:3])


def test_the_file_that_is_wrong_is_named_whichever_was_asked_first(
    stored: list[str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.client().put_object(Bucket=BUCKET, Key="blocks/1.bin", Body=CONTENT[1][::-1].tobytes())
    with pytest.raises(remote.RemoteError, match=r"^s3://videos/blocks/1\.bin: block 0 has another checksum"):
        opened(stored).read_all(REQUESTS)
    server.client().delete_object(Bucket=BUCKET, Key="blocks/1.bin")
    server.faults = Faults("0.bin", errors=100)  # fails for a while, and is not what lacks
    with pytest.raises(remote.RemoteError, match=r"^s3://videos/blocks/1\.bin: there is no such file"):
        opened(stored).read_all(REQUESTS)


ASK = """
import sys
from r23d_jax.runtime import remote
try:
    remote.files(sys.argv[1])
except remote.RemoteError as error:
    print(error)
"""


def test_wrong_credentials_are_one_sentence() -> None:
    """Processes of their own, because the packages keep credentials."""
    pytest.importorskip("moto")
    with s3_server() as server:
        key = server.demand_credentials()
        for own in ({"AWS_ACCESS_KEY_ID": "AKIAWRONG"}, key, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}):
            env = clean_environment() | server.env | own
            done = subprocess.run(
                [sys.executable, "-c", ASK, f"s3://{BUCKET}/folder"],
                env=env,
                capture_output=True,
                text=True,
                check=True,
            )
            if own is key:
                assert done.stdout == ""
            else:
                assert "s3://videos/folder: access is refused (" in done.stdout
                assert "set credentials that may read and write there" in done.stdout
                assert done.stdout.count("\n") == 1 and not done.stderr


def test_a_missing_package_and_an_unknown_store(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        UserError,
        match=r"gs://bucket/folder: needs a package that is not installed.*pip install -r requirements-remote\.txt",
    ):
        remote.files("gs://bucket/folder")
    with pytest.raises(UserError, match=r"s4://bucket/folder: no such kind of store"):
        remote.files("s4://bucket/folder")


def test_copies_follow_what_changes(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "up"
    (folder / "in").mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    (folder / "in" / "b.json").write_text("two")
    url = server.upload(folder, "copies")
    here = remote.copied(url)
    assert here.name == "copies" and (here / "a.txt").read_text() == "one" and (here / "in/b.json").read_text() == "two"
    client = server.client()
    client.put_object(Bucket=BUCKET, Key="copies/a.txt", Body=b"new")
    client.delete_object(Bucket=BUCKET, Key="copies/in/b.json")
    server.asked.clear()
    assert remote.copied(url) == here and (here / "a.txt").read_text() == "new" and not (here / "in/b.json").exists()
    assert sum(method == "GET" and "a.txt" in path for method, path, _ in server.asked) == 1
    server.asked.clear()
    remote.copied(url)
    assert not any("a.txt" in path for _, path, _ in server.asked)
    assert not (here / "in").exists()
    assert remote.copied(f"{url}/a.txt").read_text() == "new"
    assert not remote.copied(f"{url}/nothing").exists()
    client.put_object(Bucket=BUCKET, Key="copies/../b.txt", Body=b"new")
    with pytest.raises(remote.RemoteError, match=r"'\.\./b\.txt', whose name leaves the folder"):
        remote.copied(url)
    client.delete_object(Bucket=BUCKET, Key="copies/../b.txt")
    client.put_object(Bucket=BUCKET, Key="../../../../out/c.txt", Body=b"new")
    with pytest.raises(remote.RemoteError, match=r"^s3://videos/\.\./\.\./\.\./\.\./out: holds '\.\.'.* without it$"):
        remote.copied("s3://videos/../../../../out")
    assert not list(tmp_path.rglob("c.txt"))


def test_a_bucket_that_is_missing(server: Server, tmp_path: Path) -> None:
    """Whoever sends a file that may be removed meanwhile would take FileNotFoundError for that."""
    for size in (10, remote._LARGE + 1):
        with open(tmp_path / "file", "wb") as file:
            file.truncate(size)
        with pytest.raises(remote.RemoteError, match=r"^s3://other/file: there is no such bucket; make it"):
            remote.upload(tmp_path / "file", "s3://other/file")
    with pytest.raises(remote.RemoteError, match=r"^s3://My_Bucket!/a: cannot be an address .*Invalid bucket name"):
        remote.files("s3://My_Bucket!/a")
    (tmp_path / "file").unlink()
    with pytest.raises(FileNotFoundError):
        remote.upload(tmp_path / "file", "s3://other/file")
