"""Weights by name: downloads that go well and badly, from a server on this machine, and the networks they become."""

import dataclasses
import hashlib
import io
import multiprocessing
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import r23d_jax
from r23d_jax.__main__ import main
from r23d_jax.config import Config, ConfigError, UserError
from r23d_jax.models.functional import split_model
from r23d_jax.models.registry import list_models
from r23d_jax.runtime import disk
from r23d_jax.training.warm_start import WarmStartError, check_source
from r23d_jax.weights import download, pretrained
from r23d_jax.weights.download import DownloadError, File, fetch
from r23d_jax.weights.kinetics import kinetics400
from r23d_jax.weights.pretrained import PRETRAINED
from r23d_jax.weights.sources import SOURCES
from r23d_jax.weights.state_dicts import to_arrays
from r23d_jax.weights.tables import ConversionError
from tests.weights.random_networks import trained
from tests.weights.server import Publisher, publisher

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Publisher]:
    with publisher() as state:
        state.files["/a.bin"] = CONTENT
        yield state


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(disk.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    return tmp_path / "cache" / "weights"


def get(server: Publisher, checksum: str = f"sha256:{DIGEST[:8]}") -> tuple[Path, list[str]]:
    lines: list[str] = []
    (path,) = fetch("net", [File(f"{server.url}/a.bin", checksum)], lines.append)
    assert path.read_bytes() == CONTENT and not path.with_name("a.bin.part").exists()
    return path, lines


# -- the download ------------------------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once_and_checked_every_time(server: Publisher, cache: Path) -> None:
    path, lines = get(server)
    assert path == cache / "net" / "a.bin" and len(lines) == 1 and str(path.parent) in lines[0]
    assert get(server) == (path, []) and len(server.asked) == 1
    path.write_bytes(CONTENT[:-1] + b"x")  # of the right size
    _, lines = get(server)
    assert len(server.asked) == 2 and re.search(r"its sha256 is \w{8}, and must be .*; downloading it again", lines[0])


@pytest.mark.parametrize("known", [8, 64])
def test_what_is_cut_short_is_resumed(server: Publisher, known: int) -> None:
    server.cut = [1_000_000, 500_000]
    _, lines = get(server, f"sha256:{DIGEST[:known]}")
    assert [wanted for _, wanted in server.asked] == [None, "bytes=983040-", "bytes=1441792-"], "whole pieces"
    assert "127.0.0.1 broke off; downloading" in lines[1] and "resuming at 1.4 MiB" in lines[2]


def test_a_later_process_resumes(server: Publisher) -> None:
    server.cut = [100_000] * download.TRIES
    with pytest.raises(DownloadError, match="127.0.0.1 broke off; run the same command again"):
        get(server)
    get(server)
    assert server.asked[-1][1] == f"bytes={download.TRIES * download.PIECE}-"


def test_a_server_that_cannot_resume_sends_the_whole_file(server: Publisher) -> None:
    server.cut, server.ranges = [1_000_000], False
    get(server)
    assert len(server.asked) == 2


@pytest.mark.parametrize("part", [CONTENT[:9] + b"another version", CONTENT + b"more", CONTENT])
def test_a_part_of_another_version_is_dropped(server: Publisher, cache: Path, part: bytes) -> None:
    (cache / "net").mkdir(parents=True)
    (cache / "net" / "a.bin.part").write_bytes(part)
    get(server)


def test_a_wrong_file_is_not_kept(server: Publisher, cache: Path) -> None:
    with pytest.raises(DownloadError) as error:
        get(server, "sha256:00000000")
    assert f"/a.bin: its sha256 is {DIGEST[:8]}, and must be 00000000; nothing was kept" in str(error.value)
    assert f"put it into {cache / 'net'}:\n  {server.url}/a.bin (sha256:00000000)" in str(error.value)
    assert [path.name for path in (cache / "net").iterdir()] == [".lock"] and len(server.asked) == 1


def test_a_file_without_a_published_checksum_must_stay_as_it_was(server: Publisher, cache: Path) -> None:
    path, lines = get(server, "")
    assert f"states no checksum; its SHA-256 is {DIGEST}" in lines[-1]
    done = subprocess.run(["sha256sum", "-c", "a.bin.sha256"], cwd=path.parent, capture_output=True, check=False)
    assert done.returncode == 0
    path.write_bytes(b"changed")
    _, lines = get(server, "")
    assert "downloading it again" in lines[0]
    (cache / "net" / "a.bin.sha256").write_bytes(b"\xff")
    _, lines = get(server, "")
    assert "its recorded checksum cannot be read" in lines[0]


def test_a_file_that_the_user_has_put_there_is_checked(server: Publisher, cache: Path) -> None:
    for checksum in (f"sha256:{DIGEST}", ""):
        (cache / "net").mkdir(parents=True, exist_ok=True)
        (cache / "net" / "a.bin").write_bytes(CONTENT)
        get(server, checksum)
    assert not server.asked and (cache / "net" / "a.bin.sha256").exists()
    (cache / "net" / "a.bin").write_bytes(b"<html>")
    get(server)
    assert len(server.asked) == 1


def test_gits_name_of_a_file(server: Publisher, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    done = subprocess.run(["git", "hash-object", "a.bin"], cwd=tmp_path, capture_output=True, text=True, check=True)
    get(server, f"git:{done.stdout.strip()}")
    with pytest.raises(ConfigError, match="checksum='md5': unknown"):
        get(server, "md5:1")


def test_a_server_that_is_slow_or_silent(server: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    server.pause = 0.02
    get(server)
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.1)
    server.pause = 0.5
    with pytest.raises(DownloadError, match=r"run the same command again"):
        get(server, f"sha256:{DIGEST[:9]}" + "0")
    assert len(server.asked) == 1 + download.TRIES


@pytest.mark.parametrize(
    ("status", "tries", "words"), [(404, 1, "404 Not Found"), (503, download.TRIES, "503 Service Unavailable")]
)
def test_an_answer_without_the_file(server: Publisher, status: int, tries: int, words: str) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=f"/a.bin: the server answers {words}; .*put it into"):
        get(server)
    assert len(server.asked) == tries


def test_without_a_network(cache: Path) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DownloadError) as error:
            fetch("net", [File(f"{url}/a.bin", "sha256:12345678"), File(f"{url}/b.bin")], lambda line: None)
    assert str(error.value).startswith(f"{url}/a.bin: no connection to 127.0.0.1 (ConnectionError); ")
    assert str(error.value).endswith(f"put it into {cache / 'net'}:\n  {url}/a.bin (sha256:12345678)\n  {url}/b.bin")


def _fetch(url: str) -> int:
    return len(fetch("net", [File(f"{url}/a.bin", f"sha256:{DIGEST[:8]}")], lambda line: None)[0].read_bytes())


@pytest.mark.slow
def test_processes_wait_for_one_download(server: Publisher) -> None:
    server.pause = 0.05
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_fetch, [server.url] * 2, chunksize=1) == [len(CONTENT)] * 2
    assert len(server.asked) == 1


def test_a_cache_that_cannot_be_written(server: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(disk.CACHE, str(tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        get(server)


def test_the_cache_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(disk.CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert disk.cache_folder("weights") == tmp_path / "r23d_jax" / "weights"


# -- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_row_fits_the_tables_it_refers_to(name: str) -> None:
    row = PRETRAINED[name]
    assert row.network in list_models()
    assert row.network in [candidate.name for candidate in SOURCES[row.source].candidates]
    pre = dataclasses.replace(SOURCES[row.source].preprocessing, **row.preprocessing)
    assert pre.stride_at(0.0) == pre.frame_stride, "frames of unknown rate are read as the source's code reads them"
    assert len(row.accuracy) == (2 if row.protocol else 0) and row.license and row.data
    for file in row.files:
        assert file.url.startswith("https://")
        assert re.fullmatch(r"(sha256:([0-9a-f]{8}|[0-9a-f]{64})|git:[0-9a-f]{40})?", file.checksum)
        if row.source != "i3d_deepmind" and file.checksum:  # the publisher's name ends in it
            assert file.name.endswith(f"-{file.checksum.removeprefix('sha256:')}.pth")
    files_of_others = [file.url for other, r in PRETRAINED.items() if other != name for file in r.files]
    assert not {file.url for file in row.files} & set(files_of_others)


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "weights.md").read_text()
    rows = []
    for name, row in PRETRAINED.items():
        algorithm, _, digits = row.files[-1].checksum.partition(":")
        checksum = f"`{digits[:8]}`" if algorithm == "sha256" else algorithm or "none"
        accuracy, size = " / ".join(f"{value:g}" for value in row.accuracy), f"{row.mebibytes:.1f}"
        cells = (f"`{name}`", f"`{row.network}`", row.data, str(row.num_classes), accuracy or "not stated")
        rows.append(f"| {' | '.join((*cells, size if row.mebibytes else 'not stated', checksum, row.license))} |")
    table = "\n".join(rows)
    assert f"|\n{table}\n\n" in page, f"put this into docs/weights.md:\n{table}"
    for row in PRETRAINED.values():
        assert row.protocol in " ".join(page.split()), row.protocol


@pytest.mark.parity
def test_torchvision_says_the_same_of_its_weights(torchvision_video) -> None:
    networks = {"r2plus1d_tv_18": "R2Plus1D_18"}
    for row in PRETRAINED.values():
        if not row.source.startswith("torchvision"):
            continue
        name = networks.get(row.network, row.network.upper())
        stated = getattr(torchvision_video, f"{name}_Weights").KINETICS400_V1
        (file,), meta = row.files, stated.meta
        assert (file.url, file.mebibytes) == (stated.url, meta["_file_size"])
        assert row.accuracy == (meta["_metrics"]["Kinetics-400"]["acc@1"], meta["_metrics"]["Kinetics-400"]["acc@5"])
        assert kinetics400() == tuple(meta["categories"])
        pre, theirs = SOURCES[row.source].preprocessing, stated.transforms()
        assert list(pre.mean) == theirs.mean and list(pre.std) == theirs.std and not pre.antialias
        assert [pre.crop_size] * 2 == theirs.crop_size and pre.short_side == theirs.resize_size[0]
        assert "frame_rate=15" in meta["_docs"] and f"clip_len={pre.num_frames}" in meta["_docs"]
        assert dataclasses.replace(pre, **row.preprocessing).stride_at(30.0) == 2.0


# -- the networks ------------------------------------------------------------------------------------------------------


def publish(monkeypatch: pytest.MonkeyPatch, server: Publisher, name: str, contents: list[bytes]) -> None:
    """Puts files with other values, and their checksums, in the place of the published ones."""
    row, served = PRETRAINED[name], []
    for file, content in zip(row.files, contents, strict=True):
        server.files[f"/{file.name}"] = content
        served.append(File(f"{server.url}/{file.name}", f"sha256:{hashlib.sha256(content).hexdigest()[:8]}"))
    monkeypatch.setitem(PRETRAINED, name, dataclasses.replace(row, files=tuple(served)))


def as_pth(arrays: dict[str, np.ndarray]) -> bytes:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    buffer = io.BytesIO()
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}, buffer)
    return buffer.getvalue()


@pytest.mark.parity
def test_a_network_by_name(
    server: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, network = "mc3_18.kinetics400", trained("mc3_18", num_classes=400)
    publish(monkeypatch, server, name, [as_pth(to_arrays(network))])
    model = r23d_jax.load_pretrained(name)
    assert model.name == "mc3_18" and model.class_names == kinetics400()
    assert (model.preprocessing.frame_rate, model.preprocessing.short_side) == (30.0, 128)
    jax.tree.map(np.testing.assert_array_equal, split_model(model.model)[1:], split_model(network)[1:])
    capsys.readouterr()

    frames = np.random.default_rng(0).integers(0, 256, (20, 40, 50, 3), np.uint8)
    folder = tmp_path / "video"
    folder.mkdir()
    cv2 = pytest.importorskip("cv2")
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number:03}.png"), frame)
    assert main(["predict", "--weights", name, "--clips=1", "--batch-size=1", "--top=2", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"mc3_18, 400 classes, {name}\n") and any(known in said for known in kinetics400())

    assert main(["convert", "--from", f"name:{name}", "--to", str(tmp_path / "run")]) == 0
    assert f"from     {name}: torchvision, Kinetics-400" in capsys.readouterr().out
    assert main(["convert", "--from", name, "--model", "r3d_18", "--to", str(tmp_path / "b")]) == 2
    assert f"{name} is mc3_18, not r3d_18" in capsys.readouterr().err
    assert len(server.asked) == 1


@pytest.mark.slow
def test_deepminds_checkpoint_by_name(server: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    name, network = "i3d_flow.kinetics400", trained("i3d", num_classes=400, in_channels=2)
    variables = {f"Flow/inception_i3d/{key}": value for key, value in to_arrays(network, "i3d_deepmind").items()}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        made = [tf.compat.v1.get_variable(key, initializer=value) for key, value in variables.items()]
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(made).save(session, str(tmp_path / "model.ckpt"), write_meta_graph=False)
    contents = [(tmp_path / file.name).read_bytes() for file in PRETRAINED[name].files]
    publish(monkeypatch, server, name, contents)
    model = r23d_jax.load_pretrained(f"name:{name}")
    assert model.name == "i3d" and model.preprocessing.input == "flow" and model.preprocessing.frame_rate == 25.0
    assert model.preprocessing.flow.method == "tvl1" and model.class_names == kinetics400()
    jax.tree.map(np.testing.assert_array_equal, split_model(model.model)[1:], split_model(network)[1:])


@pytest.mark.parity
def test_a_training_starts_from_a_name(server: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = Config(init_from="name:mc3_18.kinetics400")
    check_source(cfg, tmp_path)
    assert not server.asked, "nothing is downloaded before the videos are found"
    cfg.init_from = "name:mc3_18.kinetic"
    with pytest.raises(ConfigError, match="weights='mc3_18.kinetic': unknown; did you mean mc3_18.kinetics400"):
        check_source(cfg, tmp_path)
    cfg.init_from = "mc3_18.kinetic"
    with pytest.raises(WarmStartError, match="no such file or folder"):
        check_source(cfg, tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("network", "fields", "message"),
    [
        ("r3d_18", {"num_classes": 400, "widths": (8, 8, 8, 8)}, "the nearest is r3d_18"),
        ("mc3_18", {"num_classes": 5}, "has 5 classes, and mc3_18.kinetics400 has 400"),
    ],
)
def test_another_network_under_the_name_is_refused(
    server: Publisher, monkeypatch: pytest.MonkeyPatch, network: str, fields: dict, message: str
) -> None:
    publish(monkeypatch, server, "mc3_18.kinetics400", [as_pth(to_arrays(trained(network, **fields)))])
    with pytest.raises(ConversionError, match=message):
        r23d_jax.load_pretrained("mc3_18.kinetics400")


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("mc3_18.kinetics400", "torch", r"mc3_18-a90a0ba3.pth: .pth files need torch \(pip install torch\)"),
        ("i3d_rgb.kinetics400", "tensorflow", "model.ckpt.index: reading a TensorFlow checkpoint needs tensorflow-cpu"),
    ],
)
def test_nothing_is_downloaded_that_could_not_be_read(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(download, "fetch", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(ConversionError, match=message):
        pretrained.read_pretrained(name, print)


def test_what_a_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(r23d_jax.list_pretrained()) == list(PRETRAINED)
    assert pretrained.pretrained_name("r3d_18.kinetics400") == "r3d_18.kinetics400"
    assert pretrained.pretrained_name("runs/r23d") is None
    (tmp_path / "r3d_18.kinetics400").mkdir()
    assert pretrained.pretrained_name(Path("r3d_18.kinetics400")) is None, "a folder of this name comes first"
    assert pretrained.pretrained_name(Path("name:r3d_18.kinetics400")) == "r3d_18.kinetics400"
    with pytest.raises(ConfigError, match="weights='r3d_18.kinetics': unknown; did you mean r3d_18.kinetics400"):
        r23d_jax.load_pretrained("r3d_18.kinetics")
    with pytest.raises(
        UserError, match="r3d_18.kinetics: there is no such file or folder, and no published weights; did"
    ):
        r23d_jax.load_model("r3d_18.kinetics")
