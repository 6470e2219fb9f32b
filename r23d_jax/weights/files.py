"""Weight files: what kind a file is by its content, and how it is read and written.

torch is imported for its own files only, TensorFlow for its checkpoints only.
"""

import glob
import hashlib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from r23d_jax.config import UserError
from r23d_jax.runtime import disk
from r23d_jax.weights.tables import ConversionError
from r23d_jax.weights.tensorflow_checkpoint import import_tensorflow, read_tensorflow

FORMAT = "r23d_jax"  # `format` in the metadata of files that describe their network
TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".pyth")
LEAST_TORCH = (2, 6)  # the first version whose weights_only=True is safe
# Keys under which training scripts keep the state dict, and a moving average of it; the first one present is read.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module")
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema")
# First bytes of files that are often taken for weights -> what such a file is, and the remedy
_UNPACK = "unpack it, and give the weight file inside"
_OTHERS = (
    (rb"version https://git-lfs", "is a Git LFS pointer; the weights were not downloaded. Fetch them: git lfs pull"),
    (
        rb"\s*<(!doctype|html|head|\?xml)",
        "is a web page, which a server sent instead of the weights; download them again in a browser",
    ),
    (rb"\x1f\x8b", f"is a gzip archive; {_UNPACK}"),
    (rb"BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", f"is a compressed archive; {_UNPACK}"),
    # torch's oldest format is a tar file that starts with one of these members
    (rb"(?!(?:storages|tensors|pickle)\0)[^\0]{1,100}.{157,256}ustar", f"is a tar archive; {_UNPACK}"),
)
_CHECKSUM = "sha256"  # in the JSON beside a file: the checksum of that file
_MOST_UNKNOWN = 32  # classes in one pickle that are replaced by records


class Content(NamedTuple):
    """What a weight file holds."""

    arrays: dict[str, Any]  # numpy arrays or torch tensors by name
    meta: dict[str, Any]  # other values in the file, {} if none
    notes: tuple[str, ...] = ()  # what was chosen or left out, for the user


def kind_of(path: Path | str | os.PathLike) -> str:
    """The kind of a file by its name and first bytes: "safetensors", "torch" or "tensorflow".

    Raises:
      ConversionError: if there is no such file, or it is not a weight file; says what it is instead.
    """
    path = Path(path)
    # os.path, because a Path raises an error if a parent folder is not readable
    if os.path.isfile(f"{path}.index") or path.suffix == ".index":
        prefix = path.with_suffix("") if path.suffix == ".index" else path
        for part in (Path(f"{prefix}.index"), *sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*"))):
            _refuse_others(part)
        return "tensorflow"
    if not os.path.exists(path):
        raise ConversionError(f"{path}: there is no such file")
    if not os.access(path, os.R_OK):
        raise ConversionError(f"{path}: cannot be read (Permission denied)")
    if not path.is_file():  # opening a pipe would wait forever
        raise ConversionError(f"{path}: is no file, but a folder, a pipe or a device")
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise ConversionError(
            f"{path}: not a weight file by its name: .pth, .pt, .pth.tar, .ckpt, .pyth, .safetensors, or a TensorFlow "
            "checkpoint (the name before .index)"
        )
    head = _refuse_others(path)
    length = int.from_bytes(head[:8], "little")
    is_safetensors = head[8:9] == b"{" and length <= path.stat().st_size
    if is_safetensors or (path.suffix == ".safetensors" and not head.startswith(b"PK\3\4")):
        return "safetensors"
    return "torch"


def _refuse_others(path: Path) -> bytes:
    """The first bytes of a file; raises ConversionError if it is empty, or of a kind in `_OTHERS`."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ConversionError(f"{path}: is empty (0 bytes); copy or download it again")
    for pattern, what in _OTHERS:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            raise ConversionError(f"{path}: {what}")
    return head


def check_reader(name: str) -> None:
    """Raises ConversionError if torch or TensorFlow, which reads files of this name, is missing."""
    path = Path(name)
    if path.suffix == ".index":
        import_tensorflow(path)
    elif path.suffix in TORCH_SUFFIXES:
        import_torch(path)


def read(path: Path | str | os.PathLike) -> Content:
    """Reads a weight file; raises ConversionError if it is damaged, has no weights, or needs code in it to be run."""
    path = Path(path)
    return _READERS[kind_of(path)](path)


def write(path: Path, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Writes a state dict, reads it again and compares; the file appears only if it is equal.

    Args:
      path: ends in .safetensors, .pth or .pt. A .pth is the state dict alone, for `load_state_dict`.
      state: numpy arrays by name.
      meta: JSON values: in the metadata of a .safetensors, or in `<path>.json` beside a .pth, with the .pth's checksum.

    Raises:
      ConversionError: for another suffix, if torch is needed and missing, if the file cannot be written, or if it reads
        differently.
    """
    from safetensors import SafetensorError

    if path.suffix in (".pth", ".pt"):
        import_torch(path)
    elif path.suffix != ".safetensors":
        raise ConversionError(f"{path}: must end in .safetensors, .pth or .pt")
    try:
        with disk.replacing(path) as partial:
            _write(partial, state, meta)
            again = read(partial).arrays
            if again.keys() != state.keys() or not all(np.array_equal(as_numpy(again[n]), state[n]) for n in state):
                raise ConversionError(f"{path}: reading it back gave other values; nothing was kept. Check the disk.")
        if path.suffix != ".safetensors" and meta:
            disk.write_atomically(_beside(path), json.dumps({**meta, _CHECKSUM: _sha256(path)}, indent=2) + "\n")
    except UserError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeError if it cannot create a file
        raise ConversionError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from error


def _write(path: Path, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        texts = {name: json.dumps(value) for name, value in meta.items()}
        path.write_bytes(save(dict(state), texts))  # its own `save_file` makes the file unreadable for other users
    else:
        torch = import_torch(path)
        torch.save({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, path)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What the JSON beside a file says; if the file has changed since then, a note, and numbers as class names."""
    meta = _json(_text(_beside(path)), {})
    if not isinstance(meta, dict):
        return {}, []
    checksum = meta.pop(_CHECKSUM, None)  # earlier versions wrote none
    if checksum is None or checksum == _sha256(path):
        return meta, []
    names = meta.pop("class_names", None)
    if "config" in meta and isinstance(names, list):  # the network has as many classes
        meta["class_names"] = [f"class_{k}" for k in range(len(names))]
    return meta, [
        f"the weights have changed since {_beside(path).name} was written: its description is used, but for the class "
        "names; remove it if they are of another network"
    ]


def as_numpy(value: Any) -> np.ndarray:
    """A torch tensor of any dtype, or anything numpy accepts, as numpy; bfloat16 becomes float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    value = np.asarray(value)
    return value.astype(np.float32) if value.dtype.name == "bfloat16" else value


def _read_safetensors(path: Path) -> Content:
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            texts = file.metadata() or {}
    except Exception as error:  # SafetensorError; for dtypes that numpy lacks, TypeError or AttributeError
        raise ConversionError(
            f"{path}: not a whole safetensors file of bfloat16, float16, float32 or float64 ({_first_line(error)})"
        ) from None
    return Content(arrays, {name: _json(text, text) for name, text in texts.items()})


def _json(text: str, otherwise: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return otherwise


class _Record:
    """Replaces an object whose class is not known to be safe: it keeps nothing, and nothing of the class runs."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Record":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    __setstate__ = __setitem__ = __init__


def _load(torch: Any, path: Path) -> tuple[Any, list[str]]:
    """What a torch file holds, and the classes in it whose objects became records."""
    records: dict[str, type] = {}
    while True:
        try:
            with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([*records.values()]):
                return torch.load(path, map_location="cpu", weights_only=True), list(records)
        except Exception as error:  # a hostile file can raise anything
            text = str(error)
            wanted = re.search(r"GLOBAL ([\w.]+)", text)
            if wanted is not None and wanted[1] not in records and len(records) < _MOST_UNKNOWN:
                if "is blocked" not in text:
                    module, _, name = wanted[1].rpartition(".")
                    records[wanted[1]] = type(name, (_Record,), {"__module__": module})
                    continue
            if wanted is not None:
                raise _refusal(path, wanted[1]) from None
            # torch's own text is not repeated: it explains how to run the code anyway
            reason = "it is no pickle of tensors" if "weights_only" in text else _first_line(error)
            raise ConversionError(f"{path}: damaged, or not a torch file ({reason})") from None


def _refusal(path: Path, name: str) -> ConversionError:
    return ConversionError(
        f"{path}: refused, because reading it could run code that is stored in it (it asks for {name}). In the program "
        "that wrote it: torch.save(model.state_dict(), path)"
    )


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(hasattr(leaf, "detach") for leaf in value.values())


def _read_torch(path: Path) -> Content:
    torch = import_torch(path)
    _check_zip(path)
    content, unknown = _load(torch, path)
    if isinstance(content, _Record):
        raise _refusal(path, unknown[-1])
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path}: holds a {type(content).__name__}, not a state dict")
    notes = []
    states = [key for key in (*CONTAINERS, *AVERAGES) if _is_state(content.get(key))]
    if states:
        state = content[states[0]]
        meta = {str(key): value for key, value in content.items() if key != states[0]}
        others = [key for key, value in meta.items() if _is_state(value) or hasattr(value, "detach")]
        if others or states[0] in AVERAGES:
            average = ", a moving average of the weights" if states[0] in AVERAGES else ""
            not_read = f"; not read: {', '.join(others)}" if others else ""
            notes.append(f"the weights are {states[0]!r} of the file{average}{not_read}")
    elif _is_state(content):
        state, (meta, more) = content, _described(path)
        notes += more
    elif unknown:
        raise _refusal(path, unknown[-1])
    else:
        raise ConversionError(
            f"{path}: holds no state dict: looked for tensors at the top and below {', '.join(CONTAINERS)}; it has "
            f"{', '.join(map(str, list(content)[:5])) or 'nothing'}"
        )
    tensors = {str(name): value for name, value in state.items() if hasattr(value, "detach")}
    other = [str(name) for name in state if not hasattr(state[name], "detach")]
    if any(isinstance(state[name], _Record) for name in state):
        raise _refusal(path, unknown[-1])
    if other:
        notes.append(f"left out, because they are no tensors: {', '.join(other[:5])}")
    if unknown:
        notes.append(f"left out, because only running code could read them: objects of {', '.join(unknown[:5])}")
    size = path.stat().st_size
    for name, value in tensors.items():  # a tensor may claim that it repeats one number endlessly
        if value.numel() * value.element_size() > size:
            raise ConversionError(f"{path}: {name} claims {value.numel()} values, more than the file can hold")
    return Content(tensors, meta, tuple(notes))


_READERS = {
    "safetensors": _read_safetensors,
    "torch": _read_torch,
    "tensorflow": lambda path: Content(read_tensorflow(path), {}),
}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _check_zip(path: Path) -> None:
    """Refuses zip files that are not plain torch files; torch itself reports damaged ones."""
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    names = {member.filename.rpartition("/")[2] for member in members}
    if "data.pkl" not in names:
        raise ConversionError(f"{path}: is a zip archive that torch did not write; {_UNPACK}")
    if "constants.pkl" in names:
        raise ConversionError(
            f"{path}: is a TorchScript archive, a program with its weights. Save the weights alone: "
            "torch.save(torch.jit.load(path, 'cpu').state_dict(), 'weights.pth')"
        )
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        # small on disk and large in memory
        raise ConversionError(f"{path}: its members are compressed, which torch never does; it was not read")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def import_torch(path: Path) -> Any:
    """torch; raises ConversionError, naming the file that needs it, if it is not installed, or too old to be safe."""
    try:
        import torch
    except ImportError:
        raise ConversionError(
            f"{path}: {path.suffix} files need torch (pip install torch); .safetensors does not"
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < LEAST_TORCH:
        raise ConversionError(
            f"{path}: torch {torch.__version__} can be made to run code by a .pth file even with weights_only=True "
            "(CVE-2025-32434); pip install --upgrade torch"
        )
    return torch
