"""Weights to torch and back: the same logits as torchvision, the same bits after a round trip, clear refusals."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import r23d_jax
from r23d_jax import models
from r23d_jax.config import HeadConfig
from r23d_jax.models.functional import split_model
from r23d_jax.weights.files import Content
from r23d_jax.weights.kinetics import kinetics400
from r23d_jax.weights.matching import fit, table_of
from r23d_jax.weights.sources import source_of
from r23d_jax.weights.state_dicts import convert, to_arrays
from r23d_jax.weights.tables import ConversionError
from tests.weights.random_networks import trained


def values(model: models.VideoNetwork) -> tuple[dict, dict]:
    return split_model(model)[1:]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("r2plus1d_10", "avgpool"),
        ("r2plus3d_10", "vit"),
        pytest.param("conv2plus3d_50", "attention_pool", marks=pytest.mark.slow),
        pytest.param("r2d_50", "avgpool", marks=pytest.mark.slow),
    ],
)
def test_there_and_back_is_bit_exact(name: str, head: str) -> None:
    model = trained(name, head=HeadConfig(kind=head, num_heads=2), widths=(4, 6, 8, 8))
    state = to_arrays(model)
    assert all(value.flags.c_contiguous for value in state.values())
    like = trained(name, head=HeadConfig(kind=head, num_heads=2), widths=(4, 6, 8, 8))
    state = {f"module.{key}": value for key, value in state.items()}
    jax.tree.map(np.testing.assert_array_equal, values(r23d_jax.from_torch(state, like)), values(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "r2plus1d_10",
        "r2plus1d_tv_10",
        "mc3_10",
        "r2plus3d_10",
    ],
)
def test_the_network_is_found_from_the_shapes(name: str) -> None:
    model = shapes_of(name)
    found = r23d_jax.from_torch(to_arrays(model))
    assert jax.tree.map(jnp.shape, values(found)) == jax.tree.map(jnp.shape, values(model))


def test_what_does_not_fit_is_listed_at_once() -> None:
    model = trained("r3d_10", widths=(4, 6, 8, 8))
    state = to_arrays(model)
    state["layer9.0.weight"] = state.pop("layer1.0.conv1.0.weight")
    state["fc.bias"] = np.zeros(9, np.float32)
    with pytest.raises(ConversionError) as caught:
        r23d_jax.from_torch(state, model)
    message = str(caught.value)
    assert "layer1.0.conv1.0.weight: missing" in message and "layer9.0.weight: not in this network" in message
    assert "fc.bias: [9], expected [7]" in message
    broken = {**to_arrays(model), "fc.weight": np.full((7, 8), np.nan, np.float32)}
    with pytest.raises(ConversionError, match=r"1 of \d+ tensors hold values that are not numbers .*fc\.weight"):
        r23d_jax.from_torch(broken, model)
    broken["fc.weight"] = broken["fc.weight"].astype(jnp.bfloat16)
    with pytest.raises(ConversionError, match=r"1 of \d+ tensors hold values that are not numbers .*fc\.weight"):
        r23d_jax.from_torch(broken, model)
    state["layer1.0.conv1.0.weight"] = state.pop("layer9.0.weight")
    with pytest.raises(
        ConversionError, match=r"no network has exactly these weights; the nearest is \w+_10 .* differs in \d+ names"
    ):
        r23d_jax.from_torch(state)


def test_what_is_not_known_is_said() -> None:
    arrays = {"encoder.0.weight": np.zeros(3, np.float32)}
    with pytest.raises(ConversionError, match=r"(?s)no known code base names.*torchvision: stem\.0\.weight"):
        r23d_jax.from_torch(arrays)
    with pytest.raises(ConversionError, match="source 'vzm' is unknown; did you mean vmz"):
        r23d_jax.from_torch(arrays, source="vzm")
    with pytest.raises(
        ConversionError, match=r"these are not weights of VMZ.*which have stem\.0\.weight and stem\.3\.weight"
    ):
        r23d_jax.from_torch(arrays, source="vmz")
    with pytest.raises(ConversionError, match="weights of an image network: inflate them"):
        r23d_jax.from_torch({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
    state = to_arrays(shapes_of("r2plus1d_tv_10"))
    with pytest.raises(ConversionError, match=r"are r2plus1d_tv_10 \(torchvision\), not r2plus1d_10: .*mid_planes"):
        r23d_jax.from_torch(state, "r2plus1d_10")
    with pytest.raises(ConversionError, match="has no names for this network"):
        to_arrays(shapes_of("r3d_10"), "hara")


def shapes_of(name: str) -> models.VideoNetwork:
    """A network of zeros."""
    model = nnx.eval_shape(lambda: models.create_model(name, num_classes=3, rngs=nnx.Rngs(0)))
    network, params, batch_stats = split_model(model)
    return network.build(*jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), (params, batch_stats)))


@pytest.mark.slow
def test_a_gamma_of_ones_is_no_gamma() -> None:
    """DeepMind's I3D has BN without gamma; its torch ports write ones, and trained ports have others."""
    state = to_arrays(shapes_of("i3d"))
    assert all((value == 1).all() for name, value in state.items() if name.endswith("bn.weight"))
    assert r23d_jax.from_torch(state).spec == models.model_spec("i3d")
    state["Mixed_3b.b0.bn.weight"] = np.full(64, 2, np.float32)
    assert r23d_jax.from_torch(state).spec == models.model_spec("i3d_gamma")


def test_a_network_without_classifier_returns_its_feature_map() -> None:
    model = trained("r3d_10", widths=(4, 6, 8, 8))
    state = {name: value for name, value in to_arrays(model).items() if not name.startswith("fc.")}
    like = trained("r3d_10", widths=(4, 6, 8, 8), head="none")
    bare = r23d_jax.from_torch(state, like)
    video = jnp.ones((2, 4, 32, 32, 3))
    assert bare(video).shape == (2, 1, 2, 2, 8)
    np.testing.assert_array_equal(bare(video), model.features(video))


def test_several_forms_of_a_classifier() -> None:
    """fc as a Sequential of dropout and linear, which fine-tuning scripts write."""
    state = to_arrays(shapes_of("r3d_18"))
    state["fc.1.weight"], state["fc.1.bias"] = state.pop("fc.weight") + 2, state.pop("fc.bias")
    model: Any = r23d_jax.from_torch(state)
    assert float(model.head.classifier.kernel[...][0, 0]) == 2.0


def test_a_classifier_of_several_layers_is_refused() -> None:
    """Two arrays may not become one."""
    state = to_arrays(shapes_of("mc3_18"))
    classifier = {"weight": state.pop("fc.weight"), "bias": state.pop("fc.bias")}
    state |= {f"fc.{k}.{name}": value for k in (1, 4) for name, value in classifier.items()}
    with pytest.raises(ConversionError, match=r"fc\.1\.weight and fc\.4\.weight would both become fc\.weight"):
        r23d_jax.from_torch(state)
    with pytest.raises(ConversionError, match=r"no array may be lost.*--num-classes then adds a new one"):
        r23d_jax.from_torch(state, shapes_of("mc3_18"))


@pytest.mark.parametrize(
    ("backbone", "classifier"),
    [
        ("model.", "model."),
        ("net.", "net."),
        ("_orig_mod.module.", "_orig_mod.module."),
        ("model.backbone.", "model."),
        ("encoder.", ""),
        ("network._orig_mod.", "network."),
    ],
)
def test_wrapping_modules_are_recognized_by_what_follows(backbone: str, classifier: str) -> None:
    state = to_arrays(shapes_of("mc3_18"))
    state["stem.1.running_var"] = np.full(64, 3, np.float32)
    wrapped = {(classifier if name.startswith("fc.") else backbone) + name: value for name, value in state.items()}
    again = to_arrays(r23d_jax.from_torch(wrapped))
    assert again.keys() == state.keys() and all(np.array_equal(again[name], state[name]) for name in state)


def test_a_name_with_and_without_a_prefix_is_refused() -> None:
    state = to_arrays(shapes_of("mc3_18"))
    state = {f"module.{name}": value for name, value in state.items()} | {"fc.bias": state["fc.bias"]}
    with pytest.raises(ConversionError, match=r"module\.fc\.bias and fc\.bias would both become fc\.bias"):
        r23d_jax.from_torch(state)


def test_what_is_left_out_is_named() -> None:
    state = to_arrays(shapes_of("mc3_18"))
    extras = {"layer1.total_ops": np.zeros(1), "total_params": np.zeros(1), "criterion.weight": np.ones(3)}
    assert convert(state | extras).notes == (
        "left out 2 arrays, a profiler's counters: layer1.total_ops, total_params",
        "left out 1 arrays, part of the loss: criterion.weight",
    )
    with pytest.raises(ConversionError, match=r"proj\.weight: not in this network"):
        convert(state | {"proj.weight": np.ones(3)})


def test_another_programs_fields_are_not_taken_for_ours() -> None:
    state = to_arrays(shapes_of("mc3_18"))
    for meta in ({"config": {"name": "ucf", "lr": 0.1}}, {"config": "a.yaml", "class_names": 3, "preprocessing": None}):
        assert convert(Content(state, meta)).name == "mc3_18"
    assert convert(Content(state, {"class_names": ["a", "b", "c"]})).class_names == ("a", "b", "c")
    with pytest.raises(ConversionError, match="class_names has 2 names, and the weights have 3 classes: correct"):
        convert(Content(state, {"class_names": ["a", "b"]}))


def test_the_classes_of_kinetics400_are_attached_where_their_order_is_known() -> None:
    names = kinetics400()
    assert len(set(names)) == 400 and list(names) == sorted(names) and names[227] == "playing cricket"
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert digest == "a8dafb93a1204d4ecfa904f943ce5ee0c62ddeeb1df71aa1f96983fca17d777e", "torchvision's list"
    state = {name: np.broadcast_to(np.zeros((), np.float32), value.shape) for name, value in named_shapes("mc3_18")}
    assert convert(state).class_names == names
    assert convert(state).notes == ("its 400 classes are taken as those of Kinetics-400, in alphabetical order",)
    own = [f"action {k}" for k in range(400)]
    assert convert(Content(state, {"class_names": own})).class_names == tuple(own), "the file's own names come first"
    assert convert(state, source="published").class_names == ()
    state["fc.weight"], state["fc.bias"] = np.zeros((399, 512), np.float32), np.zeros(399, np.float32)
    assert convert(state).class_names == ()


def named_shapes(name: str) -> list[tuple[str, np.ndarray]]:
    model = nnx.eval_shape(lambda: models.create_model(name, num_classes=400, rngs=nnx.Rngs(0)))
    return [(key, np.empty(shape)) for key, shape in table_of(model, source_of(model)).shapes.items()]


@pytest.mark.parity
def test_the_names_are_torchvisions(torchvision_video: Any) -> None:
    for weights in (
        torchvision_video.R3D_18_Weights,
        torchvision_video.R2Plus1D_18_Weights,
        torchvision_video.S3D_Weights,
    ):
        assert tuple(weights.KINETICS400_V1.meta["categories"]) == kinetics400()


@pytest.mark.parity
def test_to_torch_gives_tensors_for_load_state_dict(torchvision_video: Any) -> None:
    import torch

    model = trained("r3d_18")
    peer = torchvision_video.r3d_18(weights=None, num_classes=7)
    peer.load_state_dict(r23d_jax.to_torch(model))
    assert torch.equal(peer.stem[0].weight, torch.tensor(to_arrays(model)["stem.0.weight"]))


@pytest.mark.slow
def test_the_source_whose_names_are_written() -> None:
    for name, source in (
        ("mc3_18", "torchvision"),
        ("r3d_18", "torchvision"),
        ("r3d_34", "r23d_jax"),
        ("r2plus1d_tv_18", "torchvision"),
        ("r2plus1d_18", "vmz"),
    ):
        model = shapes_of(name)
        assert source_of(model) == source == fit(to_arrays(model), model).source
