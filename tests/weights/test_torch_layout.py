"""Weights to torch and back: the same logits as torchvision, the same bits after a round trip, clear refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import r23d_jax
from r23d_jax import models
from r23d_jax.config import HeadConfig
from r23d_jax.models.functional import split_model
from r23d_jax.weights.torch_layout import ConversionError


def trained(name: str, **fields) -> models.VideoResNet:
    """A network with random weights and random BN values, as after training."""
    fields = {"num_classes": 7, "num_frames": 4, "crop_size": 32} | fields
    model = nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0), **fields))
    network, params, batch_stats = split_model(model)
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        kind = path[-1].key
        if kind in ("var", "scale"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            value = rng.standard_normal(leaf.shape) * (
                1.4 / np.sqrt(np.prod(leaf.shape[:-1])) if kind == "kernel" else 0.1
            )
        return jnp.asarray(value, jnp.float32)

    return network.build(jax.tree.map_with_path(draw, params), jax.tree.map_with_path(draw, batch_stats))


def values(model: models.VideoResNet) -> tuple[dict, dict]:
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
    model = nnx.eval_shape(lambda: models.create_model(name, num_classes=3, rngs=nnx.Rngs(0)))
    network, params, batch_stats = split_model(model)
    model = network.build(*jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), (params, batch_stats)))
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
    state["layer1.0.conv1.0.weight"] = state.pop("layer9.0.weight")
    with pytest.raises(
        ConversionError, match=r"no network has exactly these weights.*nearest is \w+_10, which differs"
    ):
        r23d_jax.from_torch(state)
    with pytest.raises(ConversionError, match=r"there is no fc\.weight: give the network"):
        r23d_jax.from_torch({"stem.0.weight": np.zeros(3)}, "r3d_18")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("ours", "theirs"), [("r3d_18", "r3d_18"), ("mc3_18", "mc3_18"), ("r2plus1d_tv_18", "r2plus1d_18")]
)
def test_logits_equal_torchvision_both_ways(ours: str, theirs: str, torchvision_video) -> None:
    import torch

    model = trained(ours)
    peer = getattr(torchvision_video, theirs)(weights=None, num_classes=7)
    peer.load_state_dict({name: torch.tensor(value) for name, value in r23d_jax.to_torch(model).items()})
    peer.eval()
    x = np.random.default_rng(1).standard_normal((2, 4, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        want = peer(torch.tensor(x.transpose(0, 4, 1, 2, 3))).numpy()
    run = jax.jit(lambda model, x: model(x))
    # float32 through 18 layers: 1e-4 of the logits' scale
    np.testing.assert_allclose(run(model, x), want, atol=1e-4 * float(np.abs(want).max()))
    back = r23d_jax.from_torch(peer.state_dict(), ours)
    jax.tree.map(np.testing.assert_array_equal, values(back), values(model))
