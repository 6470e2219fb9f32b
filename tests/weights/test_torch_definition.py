"""The definition that `export --definition` writes: our logits, in a process that has torch and nothing of ours."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")

import r23d_jax  # noqa: E402
from r23d_jax.__main__ import main  # noqa: E402
from r23d_jax.config import INPUTS, DataConfig, HeadConfig, preprocessing  # noqa: E402
from r23d_jax.models.functional import split_model  # noqa: E402
from r23d_jax.models.registry import FAMILIES, model_config, names_of  # noqa: E402
from r23d_jax.weights import files, portable, torch_definition  # noqa: E402
from r23d_jax.weights.sources import definition_source  # noqa: E402
from r23d_jax.weights.state_dicts import to_arrays  # noqa: E402
from tests.weights.random_networks import trained  # noqa: E402

pytestmark = pytest.mark.parity

VIT = HeadConfig(kind="vit", num_heads=2, num_layers=2, dropout=0.5)
POOL = HeadConfig(kind="attention_pool", num_heads=2, hidden_dim=16, tokens="time")
RESIDUAL = HeadConfig(kind="vit", num_heads=2, hidden_dim=16, tokens="time", residual=True)
RESIDUAL_POOL = HeadConfig(kind="attention_pool", num_heads=2, residual=True)
AVERAGE = HeadConfig(kind="avgpool", dropout=0.0)
NARROW = {"widths": (8, 12, 16, 24)}
# The loading process runs the block of docs/converting.md between these lines; it must not find this package or jax.
BEFORE = """
import importlib.util, sys, torch
sys.path.insert(0, ".")
clips = torch.load("clips.pth")
"""
AFTER = """
torch.save(logits.detach(), "logits.pth")
print(*classes, [name for name in ("r23d_jax", "jax", "flax") if importlib.util.find_spec(name)])
"""
DOCS = (Path(__file__).parents[2] / "docs/converting.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(from r23d_torch import.*?)```", DOCS, re.DOTALL)


def as_torch(video: np.ndarray) -> Any:
    return torch.tensor(video.transpose(0, 4, 1, 2, 3))


def assert_close(found: Any, want: Any) -> None:
    """float32 through a whole network: 1e-5 of the largest logit."""
    error = np.abs(np.asarray(found) - np.asarray(want)).max() / np.abs(np.asarray(want)).max()
    assert error <= 1e-5, f"{error:.1e} of the largest"


def both(model: Any, head: HeadConfig, video: np.ndarray) -> tuple[Any, Any]:
    """The logits of the definition, built and filled in this process, and ours."""
    module = torch_definition.build(json.loads(json.dumps(portable.describe(model, head, 7)))).eval()
    state = to_arrays(model, definition_source(model))
    module.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    with torch.inference_mode():
        found = module(as_torch(video))
    return found, jax.jit(lambda model, x: model(x))(model, video)


def clip(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    [
        *(names_of(family)[0] for family, spec in FAMILIES.items() if spec.depths),
        "r3d_50",
        "r2plus1d_50",
        "r2plus1d_tv_50",
        "r2plus1d_hara_50",
    ],
)
def test_every_residual_family(name: str) -> None:
    assert_close(*both(trained(name, **NARROW), AVERAGE, clip(2, 4, 32, 32, 3)))


@pytest.mark.parametrize("name", ["r2plus1d_10", "r2plus3d_18", "r3d_hara_a_10", "r2plus1d_mmaction_10"])
def test_other_temporal_strides(name: str) -> None:
    model = trained(name, temporal_strides=(1, 2, 1), num_frames=8, **NARROW)
    assert_close(*both(model, AVERAGE, clip(2, 8, 32, 32, 3)))


@pytest.mark.parametrize("name", ["r3d_10", "r2plus3d_10"])
def test_a_motion_stem(name: str) -> None:
    assert_close(*both(trained(name, stem="motion", **NARROW), AVERAGE, clip(2, 4, 32, 32, 3)))


def test_blocks_are_skipped_there_too_while_training() -> None:
    """By the same rule, and for whole clips: a block that is skipped leaves its shortcut."""
    model = trained("r3d_18", stochastic_depth=0.4, **NARROW)
    about = json.loads(json.dumps(portable.describe(model, AVERAGE, 7)))
    module: Any = torch_definition.build(about)
    stages = [getattr(module, f"layer{number}") for number in range(1, 5)]
    ours: Any = model.stages
    rates = [block.stochastic_depth.rate for stage in ours for block in stage.blocks]
    assert [block.skipped for stage in stages for block in stage] == pytest.approx(rates)
    block = stages[3][1].train()
    block.skipped, x = 0.5, torch.rand(16, 24, 2, 4, 4)
    torch.manual_seed(0)
    found = block(x).detach()
    whole = torch.relu(x + 2 * block.conv3(block.conv2(block.conv1(x)))).detach()
    same = [bool(torch.allclose(one, other, atol=1e-5)) for one, other in zip(found, x, strict=True)]
    kept = [bool(torch.allclose(one, other, atol=1e-5)) for one, other in zip(found, whole, strict=True)]
    assert [not skipped for skipped in same] == kept and 3 <= sum(kept) <= 13


@pytest.mark.parametrize("name", ["i3d_gamma", "s3d_g"])
@pytest.mark.parametrize("head", [AVERAGE, RESIDUAL], ids=lambda head: head.kind)
def test_inceptions(name: str, head: HeadConfig) -> None:
    """The last feature map has three steps, more than a window of the average pool, and fewer places."""
    assert_close(*both(trained(name, head=head, num_frames=24, crop_size=64), head, clip(1, 24, 64, 64, 3)))


@pytest.mark.parametrize("head", [VIT, POOL, RESIDUAL, RESIDUAL_POOL, HeadConfig(kind="none")])
@pytest.mark.parametrize("shape", [(4, 32), (2, 16), (12, 48)])
def test_every_head_at_the_size_of_training_smaller_and_larger(head: HeadConfig, shape: tuple[int, int]) -> None:
    frames, size = shape
    model = trained("r2plus3d_10", head=dataclasses.replace(head), num_frames=8, crop_size=64, **NARROW)
    found, want = both(model, head, clip(2, frames, size, size, 3))
    assert_close(found if found.ndim == 2 else found.movedim(1, -1), want)


@pytest.mark.parametrize(
    ("name", "head", "size", "kind"),
    [
        ("r2plus3d_18", VIT, 32, "rgb_diff"),
        ("r2plus1d_18", AVERAGE, 32, "rgb"),
        ("r3d_18", AVERAGE, 32, "rgb_diff"),
        pytest.param("mc3_18", POOL, 32, "rgb_diff", marks=pytest.mark.long),
        ("r2plus3d_10", RESIDUAL, 32, "rgb_and_diff"),
        pytest.param("i3d", AVERAGE, 64, "rgb_diff", marks=pytest.mark.long),
        pytest.param("s3d", AVERAGE, 64, "rgb_diff", marks=pytest.mark.long),
    ],
)
def test_a_process_with_torch_alone(name: str, head: HeadConfig, size: int, kind: str, tmp_path: Path) -> None:
    cfg = model_config(name)
    cfg.head = head
    fields = NARROW if cfg.family not in ("i3d", "s3d") else {}
    data = DataConfig(num_frames=16, crop_size=size, short_side=size, input=kind)
    channels = INPUTS[kind].channels
    model = trained(name, head=head, num_frames=16, crop_size=size, in_channels=channels, **fields)
    pre = preprocessing(data)
    meta = {"class_names": list("abcdefg"), "preprocessing": dataclasses.asdict(pre)}
    assert portable.write_torch(tmp_path / "r23d.pth", model, head, pre, meta) <= 1e-5
    video = np.random.default_rng(0).integers(0, 256, (2, pre.read_frames, size, size, 3), np.uint8)
    torch.save(torch.tensor(video), tmp_path / "clips.pth")
    site = tmp_path / "site"  # torch and what it needs, by name
    site.mkdir()
    for entry in Path(torch.__file__).parents[1].iterdir():
        if not entry.name.startswith(("jax", "r23d", "flax", "tensorflow", "__", "easy-install", "distutils-")):
            (site / entry.name).symlink_to(entry)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site)}
    command = [sys.executable, "-S", "-c", BEFORE + EXAMPLE + AFTER]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    network, params, batch_stats = split_model(model)
    run = jax.jit(lambda video: network.apply_eval(params, batch_stats, portable.prepare_video(video, pre)))
    want = np.asarray(run(video))
    assert_close(torch.load(tmp_path / "logits.pth"), want)
    assert done.stdout.split() == [*("abcdefg"[k] for k in want.argmax(axis=1)), "[]"]


def test_the_file_stands_alone() -> None:
    text = portable.definition()
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in nodes for alias in node.names} | {getattr(node, "module", "json") for node in nodes}
    assert names == {"json", "math", "Path", "pathlib", "SimpleNamespace", "types", "Any", "typing"} | {
        "torch", "nn", "functional", "torch.nn",
    }  # fmt: skip
    assert "r23d_jax.weights" not in text


def test_the_weights_read_back_here_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those of a network whose own code base has other names."""
    source = tmp_path / "hara.safetensors"
    files.write(source, to_arrays(trained("r2plus1d_hara_10", widths=(64, 128, 256, 512))), {})
    to = tmp_path / "out.pth"
    args = ("--from", source, "--to", to, "--num-frames", 4, "--crop-size", 32, "--definition")
    assert main(["convert", *map(str, args)]) == 0
    assert "load() in r23d_torch.py reads them and needs torch alone" in capsys.readouterr().out
    assert (tmp_path / "r23d_torch.py").read_text() == portable.definition()
    again, first = r23d_jax.from_torch(to), r23d_jax.from_torch(source)
    jax.tree.map(np.testing.assert_array_equal, split_model(again)[1:], split_model(first)[1:])


def test_what_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = portable.definition().replace("functional.relu(y) if self.ends_with_relu else y", "y")
    assert text != portable.definition()
    monkeypatch.setattr(portable, "definition", lambda: text)
    pre = preprocessing(DataConfig(num_frames=4, crop_size=32, short_side=32))
    meta = {"class_names": list("abcdefg"), "preprocessing": dataclasses.asdict(pre)}
    (tmp_path / "a.pth").write_text("of an earlier export")
    with pytest.raises(portable.ExportError, match=r"a\.pth: the file gives other logits .*nothing was kept"):
        portable.write_torch(tmp_path / "a.pth", trained("r3d_10", **NARROW), AVERAGE, pre, meta)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    assert (tmp_path / "a.pth").read_text() == "of an earlier export"


def test_a_backbone_without_a_definition() -> None:
    class Other:
        family = "c3d"

    with pytest.raises(portable.ExportError, match="c3d: has no torch definition; write .safetensors"):
        portable.describe(SimpleNamespace(spec=Other()), AVERAGE, 7)  # type: ignore[arg-type]


def test_what_a_definition_cannot_go_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for to, more in (("a.safetensors", ()), ("folder", ()), ("a.pth", ("--names", "vmz"))):
        args = ["convert", "--from", "x.pth", "--to", str(tmp_path / to), "--definition", *more]
        assert main(args) == 2
        assert "--definition: needs a .pth in --to, and no --names" in capsys.readouterr().err
