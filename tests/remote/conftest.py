"""The servers of these tests, which are skipped where the packages of these are missing."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from r23d_jax.runtime import remote, signed
from tests.remote.server import Faults, GoogleServer, Server, clean_environment, google_server, s3_server


@pytest.fixture(scope="session")
def running() -> Iterator[Server]:
    for name in ("moto", "flask", "s3fs"):
        pytest.importorskip(name, reason="pip install -r requirements-remote.txt 'moto[server]'")
    with s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def running_google() -> Iterator[GoogleServer]:
    for name in ("gcp_storage_emulator", "gcsfs"):  # not imported: gcsfs reads its settings then
        if importlib.util.find_spec(name) is None:
            pytest.skip("pip install -r requirements-remote.txt gcp-storage-emulator")
    with google_server() as server:
        yield server


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed dataset; not to be changed."""
    from tests.remote.packed import write_dataset  # imports TensorFlow, which the other tests do without

    root = tmp_path_factory.mktemp("made")
    write_dataset(root)
    return root


@pytest.fixture
def server(running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server of S3 without faults, and an empty cache on this machine."""
    with _alone(running, tmp_path, monkeypatch):
        yield running


@pytest.fixture
def google(running_google: GoogleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server of Google Cloud Storage without faults, and an empty cache on this machine."""
    with _alone(running_google, tmp_path, monkeypatch):
        yield running_google


@contextlib.contextmanager
def _alone(running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    for name, value in (running.env | {"R23D_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "RETRIES", remote.Retries())
    monkeypatch.setattr(signed, "_addresses", {})
    running.faults = Faults()
    running.asked.clear()
    yield
    running.faults = Faults()
