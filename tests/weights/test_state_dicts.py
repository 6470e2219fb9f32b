"""Weights to torch and back: the same logits as torchvision, the same bits after a round trip, clear refusals."""

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
from r23d_jax.weights.tables import ConversionError
from tests.weights.random_networks import trained


def values(model: models.VideoNetwork) -> tuple[dict, dict]:
    return split_model(model)[1:]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("r2plus1d_10", "avgpool"),
        ("r2plus3d_10", "vit"),
        ("conv2plus3d_50", "attention_pool"),
        ("r2d_50", "avgpool"),
    ],
)
def test_there_and_back_is_bit_exact(name: str, head: str) -> None:
    model = trained(name, head=HeadConfig(kind=head, num_heads=2), widths=(4, 6, 8, 8))
    state = r23d_jax.to_torch(model)
    assert all(value.flags.c_contiguous for value in state.values())
    like = trained(name, head=HeadConfig(kind=head, num_heads=2), widths=(4, 6, 8, 8))
    state = {f"module.{key}": value for key, value in state.items()}
    jax.tree.map(np.testing.assert_array_equal, values(r23d_jax.from_torch(state, like)), values(model))


@pytest.mark.parametrize("name", ["r2plus1d_10", "r2plus1d_tv_10", "mc3_10", "r2plus3d_10"])
def test_the_network_is_found_from_the_shapes(name: str) -> None:
    model = shapes_of(name)
    found = r23d_jax.from_torch(r23d_jax.to_torch(model))
    assert jax.tree.map(jnp.shape, values(found)) == jax.tree.map(jnp.shape, values(model))


def test_what_does_not_fit_is_listed_at_once() -> None:
    model = trained("r3d_10", widths=(4, 6, 8, 8))
    state = r23d_jax.to_torch(model)
    state["layer9.0.weight"] = state.pop("layer1.0.conv1.0.weight")
    state["fc.bias"] = np.zeros(9, np.float32)
    with pytest.raises(ConversionError) as caught:
        r23d_jax.from_torch(state, model)
    message = str(caught.value)
    assert "layer1.0.conv1.0.weight: missing" in message and "layer9.0.weight: not in this network" in message
    assert "fc.bias: [9], expected [7]" in message
    broken = {**r23d_jax.to_torch(model), "fc.weight": np.full((7, 8), np.nan, np.float32)}
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
    with pytest.raises(ConversionError, match=r"these are not weights of VMZ.*which have stem\.3\.weight"):
        r23d_jax.from_torch(arrays, source="vmz")
    with pytest.raises(ConversionError, match="weights of an image network: inflate them"):
        r23d_jax.from_torch({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
    state = r23d_jax.to_torch(shapes_of("r2plus1d_tv_10"))
    with pytest.raises(ConversionError, match=r"are r2plus1d_tv_10 \(torchvision\), not r2plus1d_10: .*mid_planes"):
        r23d_jax.from_torch(state, "r2plus1d_10")
    with pytest.raises(ConversionError, match="has no names for this network"):
        r23d_jax.to_torch(shapes_of("r3d_10"), "hara")


def shapes_of(name: str) -> models.VideoNetwork:
    """A network of zeros."""
    model = nnx.eval_shape(lambda: models.create_model(name, num_classes=3, rngs=nnx.Rngs(0)))
    network, params, batch_stats = split_model(model)
    return network.build(*jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), (params, batch_stats)))


def test_a_gamma_of_ones_is_no_gamma() -> None:
    """DeepMind's I3D has BN without gamma; its torch ports write ones, and trained ports have others."""
    state = r23d_jax.to_torch(shapes_of("i3d"))
    assert all((value == 1).all() for name, value in state.items() if name.endswith("bn.weight"))
    assert r23d_jax.from_torch(state).spec == models.model_spec("i3d")
    state["Mixed_3b.b0.bn.weight"] = np.full(64, 2, np.float32)
    assert r23d_jax.from_torch(state).spec == models.model_spec("i3d_gamma")


def test_a_network_without_classifier_returns_its_feature_map() -> None:
    model = trained("r3d_10", widths=(4, 6, 8, 8))
    state = {name: value for name, value in r23d_jax.to_torch(model).items() if not name.startswith("fc.")}
    like = trained("r3d_10", widths=(4, 6, 8, 8), head="none")
    bare = r23d_jax.from_torch(state, like)
    video = jnp.ones((2, 4, 32, 32, 3))
    assert bare(video).shape == (2, 1, 2, 2, 8)
    np.testing.assert_array_equal(bare(video), model.features(video))


def test_several_forms_of_a_classifier() -> None:
    """fc as a Sequential of dropout and linear, which fine-tuning scripts write."""
    state = r23d_jax.to_torch(shapes_of("r3d_18"))
    state["fc.1.weight"], state["fc.1.bias"] = state.pop("fc.weight") + 2, state.pop("fc.bias")
    model: Any = r23d_jax.from_torch(state)
    assert float(model.head.classifier.kernel[...][0, 0]) == 2.0
