"""Files of weights: every kind that is in the wild, and refusals that say why."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import r23d_jax
from r23d_jax.weights import files
from r23d_jax.weights.tables import ConversionError
from tests.weights.random_networks import trained


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return r23d_jax.to_torch(trained("r3d_18", widths=(4, 6, 8, 8)))


def test_safetensors_there_and_back(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.write(path, state, {"class_names": ["a", "b"]})
    again, meta = files.read(path)
    assert meta == {"class_names": ["a", "b"]} and [file.name for file in tmp_path.iterdir()] == [path.name]
    assert again.keys() == state.keys() and all(np.array_equal(again[name], state[name]) for name in state)


def test_wrong_files(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no")
    (tmp_path / "weights.bin").write_bytes(b"no")
    for name, message in (
        ("a.safetensors", r"a\.safetensors: not a whole safetensors file"),
        ("missing.pth", r"missing\.pth: there is no such file"),
        ("weights.bin", r"weights\.bin: not a file of weights by its name: \.pth, "),
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
    again = r23d_jax.to_torch(r23d_jax.from_torch(tmp_path / name, like))
    for key, value in state.items():
        rounded = value.astype(np.float16).astype(value.dtype) if content == "half" else value
        np.testing.assert_array_equal(again[key], rounded)


@pytest.mark.parity
def test_torch_files_that_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    torch.save({"state_dict": {"a": torch.zeros(2)}, "args": argparse.Namespace(lr=1)}, tmp_path / "namespace.pth")
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:600])
    (tmp_path / "text.pth").write_bytes(b"hello")
    for name, message in (
        ("module.pth", r"module\.pth: refused, because reading it could run code .*torch\.save\(model\.state_dict"),
        ("namespace.pth", r"namespace\.pth: refused, because reading it could run code"),
        ("empty.pth", r"empty\.pth: holds no state dict: looked for tensors .* it has epoch, best"),
        ("list.pth", r"list\.pth: holds a list, not a state dict"),
        ("cut.pth", r"cut\.pth: damaged, or not a torch file"),
        ("text.pth", r"text\.pth: (damaged, or not a torch file|refused)"),
    ):
        with pytest.raises(ConversionError, match=f"(?s){message}"):
            files.read(tmp_path / name)
