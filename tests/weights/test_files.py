"""Files of weights: every kind that is in the wild, and refusals that say why."""

import argparse
import bz2
import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import r23d_jax
from r23d_jax.config import DataConfig, EvalConfig, HeadConfig, ModelConfig, preprocessing
from r23d_jax.weights import files
from r23d_jax.weights.state_dicts import convert, describe, to_arrays
from r23d_jax.weights.tables import ConversionError
from tests.weights.random_networks import trained


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return to_arrays(trained("r3d_18", widths=(4, 6, 8, 8)))


def test_safetensors_there_and_back(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.write(path, state, {"class_names": ["a", "b"]})
    again, meta, _ = files.read(path)
    assert meta == {"class_names": ["a", "b"]} and [file.name for file in tmp_path.iterdir()] == [path.name]
    assert again.keys() == state.keys() and all(np.array_equal(again[name], state[name]) for name in state)


def test_wrong_files(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no")
    (tmp_path / "weights.bin").write_bytes(b"no")
    for name, message in (
        ("a.safetensors", r"a\.safetensors: not a whole safetensors file"),
        ("missing.pth", r"missing\.pth: there is no such file"),
        ("weights.bin", r"weights\.bin: not a weight file by its name: \.pth, "),
    ):
        with pytest.raises(ConversionError, match=message):
            r23d_jax.from_torch(tmp_path / name)
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ConversionError, match=r"empty\.safetensors: holds no values"):
        r23d_jax.from_torch(tmp_path / "empty.safetensors")
    with pytest.raises(ConversionError, match=r"/proc/a\.safetensors: cannot be written"):
        files.write(Path("/proc/a.safetensors"), {"a": np.zeros(1)}, {})
    with pytest.raises(ConversionError, match=r"b\.onnx: must end in \.safetensors, \.pth or \.pt"):
        files.write(tmp_path / "b.onnx", {}, {})


CONTENTS: dict[str, Callable[[dict], Any]] = {
    "state dict": lambda state: state,
    "training checkpoint": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "data parallel": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "another key": lambda state: {"model_state_dict": state},
    "half": lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
}


@pytest.mark.parity
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.pth.tar"])
def test_torch_files_as_they_are_in_the_wild(
    content: str, name: str, state: dict[str, np.ndarray], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    tensors = {key: torch.tensor(value) for key, value in state.items()}
    torch.save(CONTENTS[content](tensors), tmp_path / name)
    like = trained("r3d_18", widths=(4, 6, 8, 8))
    again = to_arrays(r23d_jax.from_torch(tmp_path / name, like))
    for key, value in state.items():
        rounded = value.astype(np.float16).astype(value.dtype) if content == "half" else value
        np.testing.assert_array_equal(again[key], rounded)


@pytest.mark.parity
def test_torch_files_that_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:600])
    (tmp_path / "text.pth").write_bytes(b"hello")
    for name, message in (
        ("module.pth", r"module\.pth: refused, because reading it could run code .*torch\.save\(model\.state_dict"),
        ("empty.pth", r"empty\.pth: holds no state dict: looked for tensors .* it has epoch, best"),
        ("list.pth", r"list\.pth: holds a list, not a state dict"),
        ("cut.pth", r"cut\.pth: damaged, or not a torch file"),
        ("text.pth", r"text\.pth: (damaged, or not a torch file|refused)"),
    ):
        with pytest.raises(ConversionError, match=f"(?s){message}"):
            files.read(tmp_path / name)


@pytest.mark.parity
def test_a_training_checkpoint_of_torchvision_is_read(tmp_path: Path) -> None:
    """Its `args` are an argparse.Namespace, which torch refuses to read."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    content = {"model": {"a": torch.arange(3.0)}, "epoch": 3, "args": argparse.Namespace(lr=1, device=Path("cuda"))}
    torch.save(content, tmp_path / "a.pth")
    arrays, meta, notes = files.read(tmp_path / "a.pth")
    assert arrays["a"].tolist() == [0, 1, 2] and meta["epoch"] == 3
    (note,) = notes
    assert note.startswith("left out, because only running code could read them: objects of argparse.Namespace, ")


@pytest.mark.parity
def test_which_state_was_taken_is_noted(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    weights, average = {"a": torch.zeros(2)}, {"a": torch.ones(2), "n_averaged": torch.tensor(9)}
    for name, content, value, note in (
        ("a.pyth", {"model_state": weights, "model_ema": average}, 0, "'model_state' of the file; not read: model_ema"),
        ("a.ckpt", {"model_ema": average}, 1, "'model_ema' of the file, a moving average of the weights"),
        ("b.pth", {"state_dict": weights, "fc": torch.ones(2)}, 0, "'state_dict' of the file; not read: fc"),
        ("c.pth", {**weights, "epoch": 3}, 0, "left out, because they are no tensors: epoch"),
        ("d.pth", {"state_dict": weights, "optimizer": {"state": {}, "param_groups": []}}, 0, ""),
    ):
        torch.save(content, tmp_path / name)
        arrays, _, notes = files.read(tmp_path / name)
        assert arrays["a"].tolist() == [value, value]
        assert [line.removeprefix("the weights are ") for line in notes] == ([note] if note else [])


def _zip(members: tuple[str, ...]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in members:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights/r3d_18.pth"))
    return buffer.getvalue()


OTHERS = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a Git LFS pointer.*git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page.*download them again in a browser"),
    "gzip": (gzip.compress(b"weights"), "is a gzip archive; unpack it"),
    "bzip2": (bz2.compress(b"weights"), "is a compressed archive; unpack it"),
    "zip": (_zip(("r3d_18.pth", "README.md")), "is a zip archive that torch did not write; unpack it"),
    "tar": (_tar(), "is a tar archive; unpack it"),
    "program": (_zip(("a/data.pkl", "a/constants.pkl")), r"is a TorchScript archive.*torch\.jit\.load\(path"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["a.pth", "a.pth.tar", "a.safetensors"])
def test_other_files_are_named_for_what_they_are(kind: str, name: str, tmp_path: Path) -> None:
    content, message = OTHERS[kind]
    if kind in ("zip", "program"):
        pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match=rf"{name}: {message}"):
        files.read(tmp_path / name)


def test_safetensors_under_a_torch_name_are_read(tmp_path: Path) -> None:
    save_file({"a": np.arange(3.0)}, tmp_path / "a.pth")
    assert files.read(tmp_path / "a.pth").arrays["a"].tolist() == [0, 1, 2]


@pytest.mark.parity
def test_a_written_pth_is_a_bare_state_dict_with_its_description_beside_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    path = tmp_path / "a.pth"
    files.write(path, {"weight": np.ones((1, 2), np.float32), "bias": np.zeros(1, np.float32)}, {"class_names": ["a"]})
    torch.nn.Linear(2, 1).load_state_dict(torch.load(path))
    written = json.loads((tmp_path / "a.pth.json").read_text())
    assert written.pop("sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
    assert files.read(path).meta == {"class_names": ["a"]} == written


@pytest.mark.parity
def test_a_description_that_was_not_written_for_these_weights(
    state: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    path, beside = tmp_path / "a.pth", tmp_path / "a.pth.json"
    model = ModelConfig(family="r3d", depth=18, widths=(4, 6, 8, 8), head=HeadConfig(kind="avgpool"))
    files.write(path, state, describe(trained("r3d_10"), model, "abcdefg", preprocessing(DataConfig()), EvalConfig()))
    assert convert(path).class_names == tuple("abcdefg") and convert(path).notes == ()
    tensors = {name: torch.tensor(value) for name, value in state.items()}
    torch.save({**tensors, "fc.bias": torch.ones(7)}, path)
    found = convert(path)
    assert found.config == model and found.class_names == tuple(f"class_{k}" for k in range(7))
    note = "the weights have changed since a.pth.json was written: its description is used, but for the class names"
    assert [line.partition(";")[0] for line in found.notes] == [note]
    assert r23d_jax.load_model(path).class_names == found.class_names
    assert f"{path}: {note}" in capsys.readouterr().err
    torch.save({**tensors, "fc.bias": torch.ones(9)}, path)
    with pytest.raises(ConversionError, match=rf"(?s)do not fit.*{note}; remove it if they are of another network"):
        convert(path)
    meta = json.loads(beside.read_text())
    del meta["config"], meta["format"]
    beside.write_text(json.dumps(meta))
    assert "class_names" not in files.read(path).meta
    del meta["sha256"]  # of an earlier version
    beside.write_text(json.dumps(meta))
    assert files.read(path).meta["class_names"] == list("abcdefg") and files.read(path).notes == ()
