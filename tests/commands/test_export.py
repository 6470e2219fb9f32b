"""A trained network written for PyTorch reads back as the same values, and says what it is."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import r23d_jax
from r23d_jax import config
from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import Checkpoints
from r23d_jax.commands import export
from r23d_jax.evaluation.trained import load_model
from r23d_jax.models.functional import split_model
from tests.training.tiny import start, tiny_config
from tests.weights.random_networks import trained


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    cfg = tiny_config("r2plus1d", "vit")
    checkpoints = Checkpoints(workdir, log=lambda line: None)
    preprocessing = dataclasses.asdict(config.preprocessing(cfg.data))
    meta = {"config": dataclasses.asdict(cfg), "class_names": ["a", "b", "c"], "preprocessing": preprocessing}
    checkpoints.save(start(cfg)[0], meta)
    checkpoints.close()
    return workdir


def test_safetensors(workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    assert main(["export", "--workdir", str(workdir), "--to", str(path)]) == 0
    assert "read back and equal" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    with safe_open(path, "numpy") as file:
        meta = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
    assert meta["model"] == "r2plus1d_10" and meta["class_names"] == ["a", "b", "c"] and meta["bn_epsilon"] == 1e-3
    model = load_model(workdir)
    again = r23d_jax.from_torch(load_file(path), load_model(workdir))
    jax.tree.map(np.testing.assert_array_equal, split_model(again)[1:], split_model(model)[1:])


@pytest.mark.parity
def test_pth_is_read_without_pickled_code(workdir: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    path = tmp_path / "model.pth"
    assert main(["export", "--workdir", str(workdir), "--to", str(path)]) == 0
    content = torch.load(path, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in content.values()), "as load_state_dict wants it"
    assert json.loads((tmp_path / "model.pth.json").read_text())["class_names"] == ["a", "b", "c"]
    model = load_model(workdir)
    again = r23d_jax.from_torch(content, load_model(workdir))
    jax.tree.map(np.testing.assert_array_equal, split_model(again)[1:], split_model(model)[1:])
    again = r23d_jax.from_torch(path)
    jax.tree.map(np.testing.assert_array_equal, split_model(again)[1:], split_model(model)[1:])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("model.stablehlo", "B"), ("stablehlo", "B"), ("model.tflite", "1")])
def test_portable(name: str, batch: str, workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--workdir", str(workdir), "--to", str(tmp_path / name)]) == 0
    said = capsys.readouterr().out
    assert f"({batch}, 4, 16, 16, 3) uint8 -> ({batch}, 3) float32 logits" in said
    assert "read back and run: the same values" in said
    assert json.loads((tmp_path / f"{name}.json").read_text())["class_names"] == ["a", "b", "c"]


@pytest.mark.parity
def test_a_training_in_bfloat16_is_exported_in_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    cfg = tiny_config("r2plus1d", "vit")
    cfg.parallel.compute_dtype = "bfloat16"
    checkpoints = Checkpoints(tmp_path / "run", log=lambda line: None)
    meta = {"config": dataclasses.asdict(cfg), "class_names": ["a", "b", "c"]}
    checkpoints.save(start(cfg)[0], {**meta, "preprocessing": dataclasses.asdict(config.preprocessing(cfg.data))})
    checkpoints.close()
    for command, read, name, more in (
        ("export", "--workdir", "net.pth", ["--definition"]),
        ("export", "--workdir", "net.stablehlo", []),
        ("convert", "--from", "converted.pth", ["--definition"]),
    ):
        assert main([command, read, str(tmp_path / "run"), "--to", str(tmp_path / name), *more]) == 0
        error = capsys.readouterr().out.partition("the same values within ")[2].split()[0]
        assert float(error) < 1e-4


def test_a_file_that_says_what_it_is_needs_no_name(workdir: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert main(["export", "--workdir", str(workdir), "--to", str(path)]) == 0
    model, again = load_model(workdir), r23d_jax.from_torch(path)
    jax.tree.map(np.testing.assert_array_equal, split_model(again)[1:], split_model(model)[1:])


def test_wrong_places(workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("--names", "bogus")
    for to, more, message in (
        (tmp_path / "a.caffe", (), "must end in .safetensors"),
        (tmp_path / "no/a.pth", (), "there is no folder"),
        (tmp_path / "a.stablehlo", names, "--names bogus: only a state dict has the names of a code base"),
        (tmp_path / "stablehlo", names, "stablehlo must end in .safetensors, .pth, .pt"),
        (tmp_path / "hub", names, "a folder has no --definition and no --names"),
        (tmp_path / "a.safetensors", names, "source 'bogus' is unknown"),
    ):
        assert main(["export", "--workdir", str(workdir), "--to", str(to), *more]) == 2
        assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_class_that_would_compute_something_else_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = tiny_config("r3d")
    cfg.model.stem_pool = "2d"
    model = trained("r3d_10", widths=cfg.model.widths, stem_pool="2d")
    pre = config.preprocessing(cfg.data)
    export.write(tmp_path / "a.safetensors", model, cfg.model, tuple("abcdefg"), pre, cfg.eval)
    warning = "a class of torchvision may load it, and computes something else: stem_pool is '2d', not 'none'. Use"
    assert f"WARNING  {warning} --definition" in capsys.readouterr().out


def test_a_folder_that_is_no_saved_model_is_not_replaced(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "net.savedmodel" / "1" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    message = "net.savedmodel: holds other files, which must not be replaced; give a new folder"
    for _ in range(2):
        assert main(["export", "--workdir", str(workdir), "--to", str(tmp_path / "net.savedmodel")]) == 2
        assert message in capsys.readouterr().err
        assert notes.read_text() == "mine"
        (tmp_path / "net.savedmodel" / "r23d_jax.json").write_text("{}")  # of an earlier export
