"""Files of weights: what kind a file is, and how it is read and written. torch is imported for .pth files only."""

import contextlib
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from r23d_jax.weights.tables import ConversionError

TORCH_SUFFIXES = (".pth", ".pt", ".tar")
# Keys below which training scripts keep the state dict.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net")


def kind_of(path: Path | str | os.PathLike) -> str:
    """What a file is by its name: "safetensors", "torch" or "tensorflow".

    Raises:
      ConversionError: if there is no such file, or its name ends in nothing that is known.
    """
    path = Path(path)
    if path.with_name(path.name + ".index").is_file() or path.suffix == ".index":
        return "tensorflow"
    if not path.exists():
        raise ConversionError(f"{path}: there is no such file")
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
    kind = kind_of(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "torch":
        return _read_torch(path)
    raise ConversionError(f"{path}: a TensorFlow checkpoint; in Python: from_torch(r23d_jax.read_tensorflow(path))")


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

    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(dict(state), partial, metadata={name: json.dumps(value) for name, value in meta.items()})
        elif path.suffix in (".pth", ".pt"):
            torch = import_torch(path)
            tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
            torch.save({"state_dict": tensors, **meta}, partial)
        else:
            raise ConversionError(f"{path}: must end in .safetensors, .pth or .pt")
        again, _ = read(partial)
        if again.keys() != state.keys() or not all(np.array_equal(as_numpy(again[n]), state[n]) for n in state):
            raise ConversionError(f"{path}: what was written reads differently; nothing was kept. Is the disk sound?")
        os.replace(partial, path)
    except ConversionError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # torch has a RuntimeError where no file can be made
        raise ConversionError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def as_numpy(value: Any) -> np.ndarray:
    """A torch tensor of any dtype, or anything numpy takes, as numpy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            texts = file.metadata() or {}
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: bfloat16, which numpy does not have
        raise ConversionError(
            f"{path}: not a whole safetensors file of float16, float32 or float64 ({error})"
        ) from None
    meta = {}
    for name, text in texts.items():
        try:
            meta[name] = json.loads(text)
        except json.JSONDecodeError:
            meta[name] = text
    return arrays, meta


def _read_torch(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    torch = import_torch(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ConversionError(
            f"{path}: refused, because reading it would run code that is stored in it ({reason}). In the program that "
            "wrote it: torch.save(model.state_dict(), path)"
        ) from None
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ConversionError(f"{path}: damaged, or not a torch file ({str(error).splitlines()[0]})") from None
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path}: holds a {type(content).__name__}, not a state dict")
    for container in CONTAINERS:
        if isinstance(content.get(container), Mapping):
            return dict(content[container]), {k: v for k, v in content.items() if k != container}
    if not any(hasattr(value, "detach") for value in content.values()):
        raise ConversionError(
            f"{path}: holds no state dict: looked for tensors at the top and below {', '.join(CONTAINERS)}; it has "
            f"{', '.join(map(str, list(content)[:5])) or 'nothing'}"
        )
    return dict(content), {}


def import_torch(path: Path) -> Any:
    """torch.

    Raises:
      ConversionError: if it is not installed, naming the file that needs it.
    """
    try:
        import torch
    except ImportError:
        raise ConversionError(
            f"{path}: {path.suffix} files need torch (pip install -r requirements-torch.txt); .safetensors does not"
        ) from None
    return torch
