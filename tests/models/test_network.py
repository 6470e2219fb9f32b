"""What every network shares: choices of a spec, refusals, keys for dropout, and recomputation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r23d_jax import models
from r23d_jax.config import ConfigError, HeadConfig
from r23d_jax.models.functional import split_model
from r23d_jax.models.inception import InceptionSpec
from r23d_jax.models.registry import model_spec

SMALL = (4, 6, 8, 8)


def small(name: str = "r3d_10", **fields: Any) -> models.VideoNetwork:
    fields = {"num_classes": 5, "num_frames": 4, "crop_size": 32, "widths": SMALL} | fields
    return models.create_model(name, rngs=nnx.Rngs(0), **fields)


def test_a_varied_spec_changes_in_what_was_chosen_and_empty_choices_keep_its_own() -> None:
    spec = model_spec("r2plus3d_18")
    assert spec.vary({"widths": (), "stem_pool": "", "block_dropout": 0.0}) == spec
    varied = spec.vary({"widths": SMALL, "stem_pool": "", "block_dropout": 0.5})
    assert spec.changes(varied) == {"widths": ((64, 128, 256, 256), SMALL), "block_dropout": (0.0, 0.5)}
    assert varied.changes(spec) == {"widths": (SMALL, (64, 128, 256, 256)), "block_dropout": (0.5, 0.0)}
    assert spec.changes(spec) == {} == spec.changes(model_spec("i3d")) == model_spec("i3d").changes(spec)
    assert varied.family == "r2plus3d" and spec.changes(dataclasses.replace(spec, family="other")) == {}
    with pytest.raises(ConfigError) as caught:
        model_spec("i3d").vary({"block_dropout": 0.0, "widths": SMALL})
    assert str(caught.value) == ("model.widths=(4, 6, 8, 8): this family has no such choice; leave it at its default")
    with pytest.raises(ConfigError, match=r"^model\.depth=18: this family has no such choice"):
        spec.vary({"depth": 18})


def test_an_inception_has_one_size_and_reads_any_length() -> None:
    spec = InceptionSpec()
    assert spec.at_depth(50) is spec and spec.depths == () and not spec.bottleneck and not spec.fixed_length
    assert (spec.block_count, spec.out_channels, spec.head_window) == (0, 1024, (2, 7, 7))
    assert (spec.bn_epsilon, spec.bn_momentum, spec.family) == (1e-3, 0.999, "")
    own = model_spec("r3d_18")
    assert (own.bn_epsilon, own.bn_momentum, own.head_window) == (1e-5, 0.9, (1, 1, 1))


def test_image_networks_whose_kernels_can_be_inflated() -> None:
    found = {name: model_spec(name).image_network for name in ("r2d_18", "r3d_18", "mc3_18", "rmc4_18", "r2plus3d_18")}
    assert set(found.values()) == {"resnet"}
    for name in ("r2plus1d_18", "conv2plus3d_18", "ir_csn_50", "i3d", "s3d"):
        assert model_spec(name).image_network == "", name
    assert model_spec("i3d_gamma").image_network == "googlenet"


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 4, 32, 32, 1), jnp.float32, "video has shape (2, 4, 32, 32, 1); expected (B, T, H, W, 3), channels last"),
        ((4, 32, 32, 3), jnp.float32, "video has shape (4, 32, 32, 3); expected (B, T, H, W, 3), channels last"),
        ((2, 4, 32, 32, 3), jnp.int32, "video is int32; expected float32, see models.preprocess.prepare_video"),
    ],
)
def test_wrong_clips(shape: tuple[int, ...], dtype: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        nnx.eval_shape(lambda: small()(jnp.zeros(shape, dtype)))
    assert str(caught.value) == message


def test_only_a_stem_as_long_as_the_clip_fixes_its_length() -> None:
    assert nnx.eval_shape(lambda: small()(jnp.zeros((1, 7, 32, 32, 3)))).shape == (1, 5)
    with pytest.raises(ValueError) as caught:
        nnx.eval_shape(
            lambda: models.create_model("r2d_10", num_classes=5, num_frames=4, rngs=nnx.Rngs(0))(
                jnp.zeros((1, 5, 32, 32, 3))
            )
        )
    assert str(caught.value) == "this network reads clips of 4 frames; got 5"


def traced(make: Callable[[], models.VideoNetwork]) -> str:
    """The program of a loss and its inputs."""
    network, params, batch_stats = split_model(nnx.eval_shape(make))

    def loss(params: Any, batch_stats: Any, key: jax.Array) -> jax.Array:
        return jnp.sum(network.apply_train(params, batch_stats, jnp.ones((2, 4, 32, 32, 3)), key)[0])

    return str(jax.make_jaxpr(loss)(params, batch_stats, jax.random.key(0)))


def recomputations(text: str) -> int:
    return text.count("checkpoint[") + text.count("remat[") + text.count("remat2[")


@pytest.mark.parametrize("remat", [False, True])
def test_keys_reach_blocks_and_head_and_blocks_are_recomputed_if_asked_for(remat: bool) -> None:
    for fields in ({"block_dropout": 0.5}, {"head": HeadConfig(kind="avgpool", dropout=0.5)}):
        text = traced(lambda fields=fields: small("r3d_18", remat=remat, **fields))
        assert recomputations(text) == 8 * remat
        assert "random_bits" in text or "threefry" in text  # dropout draws


def test_each_block_of_an_inception_is_recomputed() -> None:
    assert recomputations(traced(lambda: small("i3d", widths=(), remat=True))) == 2 + 2 + 5 + 2


def test_a_network_knows_its_spec_and_neither_fixes_lengths_nor_recomputes_by_itself() -> None:
    built = nnx.eval_shape(small)
    assert built.spec == dataclasses.replace(model_spec("r3d_10"), widths=SMALL)  # type: ignore[call-arg]
    parts: Any = (built.spec, built.stem, list(built.stages), built.head)
    own = models.VideoNetwork(*parts, in_channels=2)
    assert (own.spec, own.in_channels, own.num_frames, own.remat) == (built.spec, 2, 0, False)


def test_the_head_follows_the_last_stage_which_features_returns() -> None:
    model = small()
    model.eval()
    clip = jax.random.normal(jax.random.key(0), (2, 4, 32, 32, 3))
    features, logits = jax.jit(lambda model, clip: (model.features(clip), model(clip)))(model, clip)
    assert features.shape == (2, 1, 2, 2, 8)
    pooled = np.array(features).mean((1, 2, 3))
    head: Any = model.head
    want = pooled @ np.array(head.classifier.kernel[...]) + np.array(head.classifier.bias[...])
    np.testing.assert_allclose(logits, want, atol=1e-5)


def test_a_feature_map_without_a_head_is_float32_too() -> None:
    def outputs() -> tuple[jax.Array, jax.Array]:
        half = small(dtype=jnp.bfloat16, head="none")
        clip = jnp.zeros((2, 4, 32, 32, 3))
        return half.features(clip), half(clip)

    features, output = nnx.eval_shape(outputs)
    assert features.dtype == jnp.bfloat16 and output.dtype == jnp.float32 and features.shape == output.shape
