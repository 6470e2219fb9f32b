"""Files of weights: what kind a file is, and how it is read and written.

torch is imported for .pth files only, TensorFlow for its checkpoints only.
"""

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from r23d_jax.config import UserError
from r23d_jax.runtime import disk
from r23d_jax.weights.tables import ConversionError
from r23d_jax.weights.tensorflow_checkpoint import read_tensorflow

TORCH_SUFFIXES = (".pth", ".pt", ".tar")
LEAST_TORCH = (2, 6)  # whose weights_only=True holds
# Keys below which training scripts keep the state dict.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net")


def kind_of(path: Path | str | os.PathLike) -> str:
    """What a file is by its name: "safetensors", "torch" or "tensorflow".

    Raises:
      ConversionError: if there is no such file, or its name ends in nothing that is known.
    """
    path = Path(path)
    # os.path, because a Path raises an error where a folder above may not be read
    if os.path.isfile(f"{path}.index") or path.suffix == ".index":
        return "tensorflow"
    if not os.path.exists(path):
        raise ConversionError(f"{path}: there is no such file")
    if not os.access(path, os.R_OK):
        raise ConversionError(f"{path}: cannot be read (Permission denied)")
    if not path.is_file():  # opening a pipe would wait for ever
        raise ConversionError(f"{path}: is no file, but a folder, a pipe or a device")
    if not path.stat().st_size:
        raise ConversionError(f"{path}: is empty (0 bytes); copy or download it again")
    if path.suffix == ".safetensors":
        return "safetensors"
    if path.suffix in TORCH_SUFFIXES:
        return "torch"
    raise ConversionError(
        f"{path}: not a file of weights by its name: .pth, .pt, .pth.tar, .safetensors, or a TensorFlow checkpoint "
        "(the name before .index)"
    )


def read(path: Path | str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a file of weights.

    Returns:
      Arrays (numpy, or torch tensors) by name, and what else the file says, {} if nothing.

    Raises:
      ConversionError: if the file is damaged, holds no weights, or can only be read by running code that is in it.
    """
    path = Path(path)
    return _READERS[kind_of(path)](path)


def write(path: Path, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Writes a state dict, reads it again and compares; the file appears only once it is equal.

    Args:
      path: ends in .safetensors, .pth or .pt.
      state: numpy arrays by name.
      meta: what else the file is to say; safetensors keeps each value as JSON text.

    Raises:
      ConversionError: for another ending, if torch is needed and missing, if the file cannot be written, or if what was
        written reads differently.
    """
    from safetensors import SafetensorError

    if path.suffix in (".pth", ".pt"):
        import_torch(path)
    elif path.suffix != ".safetensors":
        raise ConversionError(f"{path}: must end in .safetensors, .pth or .pt")
    try:
        with disk.replacing(path) as partial:
            _write(partial, state, meta)
            again, _ = read(partial)
            if again.keys() != state.keys() or not all(np.array_equal(as_numpy(again[n]), state[n]) for n in state):
                raise ConversionError(
                    f"{path}: what was written reads differently; nothing was kept. Is the disk sound?"
                )
    except UserError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # torch has a RuntimeError where no file can be made
        raise ConversionError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from error


def _write(path: Path, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        texts = {name: json.dumps(value) for name, value in meta.items()}
        path.write_bytes(save(dict(state), texts))  # its own `save_file` lets nobody else read the file
    else:
        torch = import_torch(path)
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
        torch.save({"state_dict": tensors, **meta}, path)


def as_numpy(value: Any) -> np.ndarray:
    """A torch tensor of any dtype, or anything numpy takes, as numpy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            texts = file.metadata() or {}
    except Exception as error:  # SafetensorError; of dtypes that numpy does not have, TypeError or AttributeError
        raise ConversionError(
            f"{path}: not a whole safetensors file of float16, float32 or float64 ({_first_line(error)})"
        ) from None
    meta = {}
    for name, text in texts.items():
        try:
            meta[name] = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            meta[name] = text
    return arrays, meta


def _read_torch(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    torch = import_torch(path)
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of an archive of TorchScript, which is refused just after
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can raise anything
        text = str(error)
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
            # Nothing else of what torch says is repeated: it goes on to explain how to run the code all the same.
            wanted = re.search(r"GLOBAL ([\w.]+)", text)
            reason = f"it asks for {wanted[1]}" if wanted else "it is no plain state dict"
            raise ConversionError(
                f"{path}: refused, because reading it could run code that is stored in it ({reason}). In the program "
                "that wrote it: torch.save(model.state_dict(), path)"
            ) from None
        raise ConversionError(f"{path}: damaged, or not a torch file ({_first_line(error)})") from None
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path}: holds a {type(content).__name__}, not a state dict")
    for container in CONTAINERS:
        if isinstance(content.get(container), Mapping):
            _refuse_stretched(path, content[container])
            return dict(content[container]), {k: v for k, v in content.items() if k != container}
    if not any(hasattr(value, "detach") for value in content.values()):
        raise ConversionError(
            f"{path}: holds no state dict: looked for tensors at the top and below {', '.join(CONTAINERS)}; it has "
            f"{', '.join(map(str, list(content)[:5])) or 'nothing'}"
        )
    _refuse_stretched(path, content)
    return dict(content), {}


_READERS = {
    "safetensors": _read_safetensors,
    "torch": _read_torch,
    "tensorflow": lambda path: (read_tensorflow(path), {}),
}


def _refuse_compressed(path: Path) -> None:
    """torch compresses nothing, so what is small on disk and large in memory is an attack."""
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # torch will say it in its own words
        return
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ConversionError(f"{path}: its members are compressed, which torch never does; it was not read")


def _refuse_stretched(path: Path, state: Mapping[str, Any]) -> None:
    """A tensor may say that it repeats one number without end."""
    size = path.stat().st_size
    for name, value in state.items():
        if hasattr(value, "detach") and value.numel() * value.element_size() > size:
            raise ConversionError(f"{path}: {name} claims {value.numel()} values, more than the file can hold")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def import_torch(path: Path) -> Any:
    """torch.

    Raises:
      ConversionError: if it is not installed, or too old to be safe, naming the file that needs it.
    """
    try:
        import torch
    except ImportError:
        raise ConversionError(
            f"{path}: {path.suffix} files need torch (pip install torch); .safetensors does not"
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < LEAST_TORCH:
        raise ConversionError(
            f"{path}: torch {torch.__version__} can be made to run code by a .pth file even where it is told not to "
            "(CVE-2025-32434); pip install --upgrade torch"
        )
    return torch
