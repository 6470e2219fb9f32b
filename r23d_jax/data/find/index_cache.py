"""Saves the indexes of data folders, so that a second start does not read the folders again.

A cache is an `.npz` of plain arrays in `<folder>/.r23d_jax/`, or in the user's cache folder if the data folder is
read-only. It is only a shortcut: a damaged or outdated cache is rebuilt.
"""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from r23d_jax.runtime import disk

VERSION = 1
FOLDER = ".r23d_jax"


def prepare_folder(root: Path) -> None:
    """Makes the cache folder inside `root`, if possible. Call it before a scan, as it changes the folder's time."""
    with contextlib.suppress(OSError):  # read-only data: the user's cache folder is used
        (root / FOLDER).mkdir(exist_ok=True)


def load(root: Path, name: str, layout: Mapping[str, str]) -> dict[str, np.ndarray] | None:
    """The arrays saved under `name`; None if there are none, or if they cannot be read or do not match the layout.

    Args:
      layout: for each array a dtype and one letter per axis, as in "int32 N"; "str" is text of any length. Axes with
        the same letter must be equally long.
    """
    for path in _places(root, name):
        if not path.is_file():  # opening a pipe would wait forever
            continue
        try:
            with open(path, "rb") as file:
                arrays = read(file)
            if int(arrays.pop("cache_version")) == VERSION and fits(arrays, layout):
                return arrays
        except Exception:  # noqa: S112  a damaged zip raises some ten kinds of exception, and each means that the index is rebuilt
            continue
    return None


def read(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Reads all arrays of a cache, in no more memory than the file is long. A damaged file may raise any exception."""
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("compressed, which `save` never does: a small file could fill the memory")
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def fits(arrays: Mapping[str, np.ndarray], layout: Mapping[str, str]) -> bool:
    """Whether names, dtypes and shapes match a layout; see `load`."""
    lengths: dict[str, int] = {}
    for name, text in layout.items():
        dtype, *axes = text.split()
        array = arrays.get(name)
        if array is None or array.ndim != len(axes):
            return False
        if array.dtype.kind != "U" if dtype == "str" else array.dtype != dtype:
            return False
        if any(lengths.setdefault(axis, length) != length for axis, length in zip(axes, array.shape, strict=True)):
            return False
    return arrays.keys() == layout.keys()


def save(root: Path, name: str, arrays: Mapping[str, np.ndarray]) -> Path | None:
    """Saves arrays under `name`, all or nothing; returns the file, or None if no place can be written to."""
    for path in _places(root, name):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with disk.replacing(path) as partial:
                np.savez(partial, cache_version=np.asarray(VERSION), **arrays)  # pyright: ignore[reportArgumentType]
            return path
        except OSError:  # the disk is full, or there is no permission
            continue
    return None


def _places(root: Path, name: str) -> list[Path]:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    mark = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:16]
    return [root / FOLDER / f"{name}.npz", Path(home) / "r23d_jax" / f"{mark}-{name}.npz"]
