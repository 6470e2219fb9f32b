"""Pickles that run code when they are loaded, in the file formats that hold pickles."""

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.marker}'",)


def torch_zip(state: Any, **extra: bytes) -> bytes:
    """A file as `torch.save` writes it, with any pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(state, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for name, content in extra.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def torch_tar(code: Any) -> bytes:
    """The oldest of torch's formats."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(code)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def torch_legacy(code: Any) -> bytes:
    """The format before zip: a magic number, a version, the machine, the content, storage keys."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}})
    return b"".join(pickle.dumps(part, protocol=2) for part in (*parts, {"state_dict": code}, []))


HOSTILE: dict[str, Callable[[Code], bytes]] = {
    "pickle 0": lambda code: pickle.dumps({"a": code}, protocol=0),
    "pickle 2": lambda code: pickle.dumps({"a": code}, protocol=2),
    "pickle 5": lambda code: pickle.dumps({"a": code}, protocol=5),
    "legacy": torch_legacy,
    "zip": lambda code: torch_zip({"state_dict": code}),
    "tar": torch_tar,
    "TorchScript": lambda code: torch_zip({}, **{"archive/constants.pkl": pickle.dumps(code)}),
    "member that leaves": lambda code: torch_zip({}, **{"../../evil.pkl": pickle.dumps(code)}),
    "compressed": lambda code: _compressed(code),
}


def _compressed(code: Code) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(code))
    return buffer.getvalue()


def plant_code(path: Path, how: str, marker: Path) -> None:
    """Puts code into an .npz file: as its names ("object array"), or in place of the whole file ("bare pickle")."""
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(Code(marker)))
        return
    with np.load(path, allow_pickle=False) as file:
        arrays: dict[str, Any] = dict(file)
    arrays["names"] = np.array([Code(marker)], object)
    np.savez(path, **arrays)
