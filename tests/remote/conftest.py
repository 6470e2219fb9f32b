"""The S3 server of these tests. All are skipped where its packages are missing."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from r23d_jax.runtime import remote, signed
from tests.remote.server import Faults, Server, clean_environment, s3_server


@pytest.fixture(scope="session")
def running() -> Iterator[Server]:
    for name in ("moto", "flask", "s3fs"):
        pytest.importorskip(name, reason="pip install -r requirements-remote.txt 'moto[server]'")
    with s3_server() as server:
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
    """The server without faults, and an empty cache on this machine."""
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    for name, value in (running.env | {"R23D_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "RETRIES", remote.Retries())
    monkeypatch.setattr(signed, "_addresses", {})
    running.faults = Faults()
    running.asked.clear()
    yield running
    running.faults = Faults()
