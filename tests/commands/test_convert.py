"""`python -m r23d_jax convert`: both directions, what it says, and what it refuses."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import load_checkpoint
from r23d_jax.config import DataConfig, HeadConfig, ModelConfig, preprocessing, validate
from r23d_jax.weights import files
from r23d_jax.weights.state_dicts import to_arrays
from tests.weights.random_networks import as_image_network, trained


def convert(*args: object) -> int:
    return main(["convert", *map(str, args)])


def lines_of(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mc3_18 under torchvision's names, without a word on what it is."""
    path = tmp_path_factory.mktemp("weights") / "mc3_18.safetensors"
    files.write(path, to_arrays(trained("mc3_18", num_classes=12)), {})
    return path


@pytest.fixture(scope="module")
def folder(torchvision_file: Path) -> Path:
    to = torchvision_file.with_name("checkpoint")
    assert convert("--from", torchvision_file, "--to", to) == 0
    return to


def test_foreign_weights_become_a_checkpoint(
    torchvision_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"name {k}" for k in range(12)) + "\n", encoding="utf-8-sig")  # as Notepad does
    args = ("--num-frames", 8, "--class-names", names)
    assert convert("--from", torchvision_file, "--to", tmp_path / "out", *args) == 0
    said = lines_of(capsys)
    for part in (
        f"from {torchvision_file}: torchvision network mc3_18, avgpool head, 12 classes, 11,496,396 parameters",
        "BN epsilon 1e-05; no pool after the stem",
        "input 8 frames at stride 2, crop 112 of short side 128, mean (0.43216, 0.394666, 0.37645)",
        "weights do not store them; change them with --num-frames",
        f"to {tmp_path / 'out'}: a checkpoint, read back and equal",
    ):
        assert part in said
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.class_names[::3] == ("name 0", "name 3", "name 6", "name 9") and loaded.preprocessing.num_frames == 8
    state, again = files.read(torchvision_file)[0], to_arrays(loaded.model)
    assert all(np.array_equal(again[name], state[name]) for name in state)


def test_and_back_under_any_code_bases_names(
    folder: Path, torchvision_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert("--from", folder, "--to", tmp_path / "back.safetensors", "--names", "torchvision") == 0
    said = lines_of(capsys)
    assert (
        "a checkpoint of r23d_jax, step 0, the only checkpoint" in said
        and "read back and equal names of torchvision" in said
    )
    assert "weights do not store them" not in said
    state, again = files.read(torchvision_file)[0], files.read(tmp_path / "back.safetensors")[0]
    assert again.keys() == state.keys() and all(np.array_equal(again[name], state[name]) for name in state)
    assert convert("--from", folder, "--to", tmp_path / "flat.safetensors", "--names", "hara") == 2
    assert "has no names for this network" in capsys.readouterr().err


@pytest.mark.slow
def test_another_number_of_classes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--from", folder, "--to", tmp_path / "five", "--num-classes", 5) == 0
    assert "the weights have 12 classes; the classifier of 5 is random" in lines_of(capsys)
    models: list[Any] = [load_checkpoint(path).model for path in (folder, tmp_path / "five")]
    old, new = models
    assert new.head.classifier.kernel[...].shape == (512, 5)
    np.testing.assert_array_equal(new.stem.conv.kernel[...], old.stem.conv.kernel[...])
    np.testing.assert_array_equal(
        new.stages[3].blocks[1].norm2.norm.var[...], old.stages[3].blocks[1].norm2.norm.var[...]
    )


def test_a_source_that_only_the_user_knows(
    torchvision_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published video_resnet.py has torchvision's names; its dropout and its pixels are other ones."""
    assert convert("--from", torchvision_file, "--to", tmp_path / "out", "--source", "published") == 0
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.preprocessing.byte_range and loaded.config.model.block_dropout == 0.3
    assert "the published video_resnet.py" in lines_of(capsys)


@pytest.mark.slow
def test_an_image_network_is_inflated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video: Any = trained("f_r2d_18", num_classes=6)
    flat = as_image_network(to_arrays(video))
    path = tmp_path / "resnet18.safetensors"
    files.write(path, flat, {})
    assert convert("--from", path, "--to", tmp_path / "out") == 2
    assert "an image network; choose the video network with --model, e.g. --model r3d_18" in capsys.readouterr().err
    args = ("--model", "r3d_18", "--inflate", "center", "--num-classes", 6)
    assert convert("--from", path, "--to", tmp_path / "out", *args) == 0
    assert "an image network, inflated (center) note it pools after its stem" in lines_of(capsys)
    model: Any = load_checkpoint(tmp_path / "out").model
    kernel = np.asarray(model.stages[0].blocks[0].conv1.kernel[...])
    np.testing.assert_array_equal(kernel[1], video.stages[0].blocks[0].conv1.kernel[...][0])
    assert not kernel[0].any() and not kernel[2].any()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--from", "{file}", "--to", "{tmp}/a.npz"), "a.npz: a checkpoint's folder has no suffix; files end in"),
        (("--from", "{file}", "--to", "{tmp}"), "already exists; give a new folder"),
        (
            ("--from", "{file}", "--to", "{tmp}/a", "--names", "vmz"),
            "--names vmz: only a state dict has the names of a code base; --to ",
        ),
        (("--from", "{tmp}/no.pth", "--to", "{tmp}/a"), "no.pth: there is no such file"),
        (("--from", "{file}", "--to", "{tmp}/no/a.pth"), "there is no folder"),
        (("--from", "{file}", "--to", "{tmp}/a", "--num-classes", "0"), "--num-classes 0: must be at least 1"),
        (
            ("--from", "{file}", "--to", "{tmp}/a", "--model", "r3d_18"),
            "these weights are mc3_18 (torchvision), not r3d_18",
        ),
        (("--from", "{file}", "--to", "{tmp}/a", "--model", "r3d18"), "model 'r3d18' is unknown; did you mean r3d_18"),
        (("--from", "{file}", "--to", "{tmp}/a", "--class-names", "{tmp}/two"), "two: 2 names for 12 classes"),
        (("--from", "{run}", "--to", "{tmp}/a", "--model", "r3d_18"), "is mc3_18, not r3d_18"),
        (
            ("--from", "{file}", "--to", "{tmp}/a", "--class-names", "{tmp}/twice"),
            "twice: has 'b' more than once; give",
        ),
        (("--from", "{file}", "--to", "{tmp}/a", "--inflate", "center"), "is no image network, so nothing is inflated"),
        (
            ("--from", "{file}", "--to", "{tmp}/a.safetensors", "--crop-size", "224"),
            "the crop of 224 pixels is larger than the short side of 128: set both --crop-size and --short-side",
        ),
    ],
)
def test_mistakes(
    args: tuple[str, ...],
    message: str,
    torchvision_file: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "two").write_text("a\nb\n")
    (tmp_path / "twice").write_text("\n".join("abbcdefghijk") + "\n")
    filled = [arg.format(file=torchvision_file, run=folder, tmp=tmp_path) for arg in args]
    assert convert(*filled) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["twice", "two"]


@pytest.mark.slow
def test_a_network_that_no_other_command_takes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clips have three channels, or two; other networks are for Python alone."""
    for channels in (1, 4):
        path = tmp_path / f"{channels}.safetensors"
        files.write(path, to_arrays(trained("mc3_10", in_channels=channels)), {})
        assert convert("--from", path, "--to", tmp_path / "out") == 2
        assert f"reads clips of {channels} channels, and this program has clips of 3" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        assert convert("--from", path, "--to", tmp_path / f"{channels}b.safetensors") == 0
    files.write(tmp_path / "flow.safetensors", to_arrays(trained("mc3_10", in_channels=2)), {})
    assert convert("--from", tmp_path / "flow.safetensors", "--to", tmp_path / "flow") == 0
    loaded = load_checkpoint(tmp_path / "flow")
    assert loaded.preprocessing.input == "flow"
    validate(loaded.config)


def test_frames_and_differences_become_a_checkpoint(tmp_path: Path) -> None:
    cfg = DataConfig(num_frames=4, short_side=32, crop_size=32, input="rgb_and_diff")
    path = tmp_path / "both.safetensors"
    model = ModelConfig(family="mc3", depth=10, in_channels=6, head=HeadConfig(kind="avgpool"))
    meta = {"config": dataclasses.asdict(model), "preprocessing": dataclasses.asdict(preprocessing(cfg))}
    files.write(path, to_arrays(trained("mc3_10", in_channels=6)), meta | {"class_names": list("abcdefg")})
    assert convert("--from", path, "--to", tmp_path / "both") == 0
    loaded = load_checkpoint(tmp_path / "both")
    assert (loaded.preprocessing.input, loaded.config.model.in_channels) == ("rgb_and_diff", 6)
    validate(loaded.config)


def test_class_names_of_the_wrong_length_leave_no_folder(
    torchvision_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "named.safetensors"
    files.write(path, files.read(torchvision_file).arrays, {"class_names": ["a", "b"]})
    assert convert("--from", path, "--to", tmp_path / "out") == 2
    assert "named.safetensors: the file's class_names has 2 names" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_rate_of_the_training_is_kept(tmp_path: Path) -> None:
    """Without it, a video of another rate would be read at another pace."""
    pre = preprocessing(DataConfig(num_frames=4, short_side=32, crop_size=32, frame_rate=25.0))
    model = ModelConfig(family="mc3", depth=10, head=HeadConfig(kind="avgpool"))
    meta = {"config": dataclasses.asdict(model), "preprocessing": dataclasses.asdict(pre)}
    files.write(tmp_path / "a.safetensors", to_arrays(trained("mc3_10")), meta | {"class_names": list("abcdefg")})
    assert convert("--from", tmp_path / "a.safetensors", "--to", tmp_path / "a") == 0
    assert load_checkpoint(tmp_path / "a").preprocessing == pre and pre.frame_rate == 25.0


def test_clips_that_a_head_has_no_positions_for_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = DataConfig(num_frames=16, short_side=32, crop_size=32)
    head = HeadConfig(kind="vit", num_heads=2, hidden_dim=16)
    model = ModelConfig(family="mc3", depth=10, head=head)
    meta = {"config": dataclasses.asdict(model), "preprocessing": dataclasses.asdict(preprocessing(cfg))}
    arrays = to_arrays(trained("mc3_10", head=head, num_frames=16, crop_size=32))
    files.write(tmp_path / "vit.safetensors", arrays, meta | {"class_names": list("abcdefg")})
    for to in ("a", "a.safetensors"):
        assert convert("--from", tmp_path / "vit.safetensors", "--to", tmp_path / to, "--num-frames", 32) == 2
        said = capsys.readouterr().err
        assert "positions: the weights have " in said and "clips of 32 frames of 32 pixels need " in said
        assert "config.init_from, which interpolates them" in said and not (tmp_path / to).exists()


@pytest.mark.slow
def test_as_many_classes_of_ones_own_get_a_random_classifier(folder: Path, tmp_path: Path) -> None:
    assert convert("--from", folder, "--to", tmp_path / "twelve", "--num-classes", 12) == 0
    models: list[Any] = [load_checkpoint(path).model for path in (folder, tmp_path / "twelve")]
    old, new = (model.head.classifier.kernel[...] for model in models)
    assert old.shape == new.shape and not np.array_equal(old, new)
