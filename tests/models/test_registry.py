"""Names, configs and arguments lead to the network that they describe, and to no other."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r23d_jax import models
from r23d_jax.config import ConfigError, HeadConfig, ModelConfig
from r23d_jax.models.heads import AvgPoolHead, NoHead, ViTHead
from r23d_jax.models.inception import InceptionSpec
from r23d_jax.models.registry import FAMILIES, build_model, model_config, model_name, model_spec, names_of
from r23d_jax.models.video_resnet import DEPTHS, VideoResNetSpec

SMALL = (4, 6, 8, 16)


def abstract(name: str, **fields: Any) -> Any:
    fields = {"num_classes": 5} | fields
    return nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0), **fields))


def messages(call: Any, *args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    return str(caught.value)


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_depths_and_specs_belong_together() -> None:
    assert names_of("r3d") == [f"r3d_{depth}" for depth in DEPTHS] and names_of("i3d") == ["i3d"]
    assert names_of("ir_csn") == [f"ir_csn_{depth}" for depth in DEPTHS if depth >= 50]
    for family, spec in FAMILIES.items():
        for depth in spec.depths:
            own: Any = model_spec(f"{family}_{depth}")
            assert own == dataclasses.replace(spec, layers=DEPTHS[depth], bottleneck=depth >= 50)  # type: ignore[call-arg]
            assert own.family == family and own.block_count == sum(DEPTHS[depth])
            assert own.expansion == (4 if depth >= 50 else 1) and own.out_channels == own.widths[3] * own.expansion
        if not spec.depths:
            assert model_spec(family) is spec is spec.at_depth(18)
    assert messages(model_spec, "r3d").startswith("model 'r3d' is unknown; did you mean ")
    assert messages(model_spec, "i3d_18").startswith("model 'i3d_18' is unknown; did you mean ")


def test_configs_name_networks_and_back() -> None:
    assert model_name(ModelConfig(family="r2plus1d", depth=34)) == "r2plus1d_34"
    assert model_name(ModelConfig(family="s3d", depth=34)) == "s3d"
    assert messages(model_name, ModelConfig(family="ip_csn", depth=34)) == (
        f"config.model.depth=34: ip_csn comes with {', '.join(str(depth) for depth in DEPTHS if depth >= 50)} layers"
    )
    assert messages(model_name, ModelConfig(family="r3")).startswith("config.model.family='r3': unknown; did you mean ")
    cfg = model_config("rmc3_50")
    assert (cfg.family, cfg.depth, cfg.head) == ("rmc3", 50, HeadConfig(kind="avgpool", dropout=0.0))
    assert model_config("i3d_gamma").family == "i3d_gamma" and model_config("r2plus1d_tv_10").family == "r2plus1d_tv"


# Of each residual family: the stages' convolutions, and every field that is not the default.
STAGES = {
    "r2d": (("2d",) * 4, {"stem": "Lx7x7"}),
    "f_r2d": (("2d",) * 4, {"stem": "1x7x7"}),
    "r3d": (("3d",) * 4, {}),
    "mc2": (("2d",) * 4, {}),
    "mc3": (("3d", "2d", "2d", "2d"), {}),
    "mc4": (("3d", "3d", "2d", "2d"), {}),
    "mc5": (("3d", "3d", "3d", "2d"), {}),
    "rmc2": (("3d",) * 4, {"stem": "1x7x7"}),
    "rmc3": (("2d", "3d", "3d", "3d"), {"stem": "1x7x7"}),
    "rmc4": (("2d", "2d", "3d", "3d"), {"stem": "1x7x7"}),
    "rmc5": (("2d", "2d", "2d", "3d"), {"stem": "1x7x7"}),
    "r2plus1d": (("2plus1d",) * 4, {"stem": "factorized", "bn_epsilon": 1e-3}),
    "r2plus1d_tv": (("2plus1d",) * 4, {"stem": "factorized", "mid_planes": "per_block"}),
    "r2plus3d": (
        ("2d", "2d", "3d", "3d"),
        {"stem": "1x7x7", "stem_pool": "2d", "widths": (64, 128, 256, 256), "final_relu": False},
    ),
    "conv2plus3d": (("2plus3d",) * 4, {}),
}


@pytest.mark.parametrize("family", STAGES)
def test_families_are_what_their_papers_describe(family: str) -> None:
    """Tran et al. 2018, figure 1: MCx has 3D convolutions before group x, rMCx from x on."""
    stages, fields = STAGES[family]
    assert FAMILIES[family] == VideoResNetSpec(stages, **fields)  # type: ignore[arg-type]


def test_inceptions_are_what_their_authors_published() -> None:
    """DeepMind's I3D pads as TensorFlow does and its BN has no gamma; torchvision's S3D pads evenly and has one."""
    own = {name: spec for name, spec in FAMILIES.items() if isinstance(spec, InceptionSpec)}
    assert own == {
        "i3d": InceptionSpec(separable=False, gated=False, same_padding=True, bn_scale=False),
        "i3d_gamma": InceptionSpec(separable=False, gated=False, same_padding=True, bn_scale=True),
        "s3d": InceptionSpec(separable=True, gated=False, same_padding=False, bn_scale=True),
        "s3d_g": InceptionSpec(separable=True, gated=True, same_padding=False, bn_scale=True),
    }
    assert all(spec.family == name for name, spec in FAMILIES.items())


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_defaults_of_create_model() -> None:
    model = abstract("r2plus3d_10", head=HeadConfig(kind="vit"))
    assert isinstance(model.head, ViTHead)
    assert model.head.tokenizer.positions.shape == (4, 4, 4, 256)  # of 16 frames of 112 x 112
    assert (model.in_channels, model.num_frames, model.remat) == (3, 0, False)
    assert model.head.dropout.rate == 0.5  # a HeadConfig's own
    assert abstract("r2plus3d_10", head="vit").head.dropout.rate == 0.0  # a name alone has none
    assert isinstance(abstract("r3d_10").head, AvgPoolHead) and isinstance(abstract("r3d_10", head="none").head, NoHead)
    assert abstract("r2d_10").num_frames == 16 and abstract("r2d_10", num_frames=8).num_frames == 8
    assert model.stem.conv.dtype == jnp.float32 and model.spec == model_spec("r2plus3d_10")


def test_every_argument_reaches_the_network() -> None:
    head = HeadConfig(kind="vit", num_heads=2, tokens="time")
    fields = {"num_frames": 8, "crop_size": 32, "in_channels": 2, "widths": SMALL, "stem": "7x7x7", "stem_pool": "3d"}
    fields |= {
        "block_dropout": 0.25,
        "stochastic_depth": 0.125,
        "temporal_strides": (2, 1, 1),
        "dtype": jnp.bfloat16,
        "remat": True,
    }
    cfg = ModelConfig(
        family="r3d",
        depth=10,
        in_channels=2,
        widths=SMALL,
        stem="7x7x7",
        stem_pool="3d",
        block_dropout=0.25,
        stochastic_depth=0.125,
        temporal_strides=(2, 1, 1),
        head=head,
    )
    built: Any = nnx.eval_shape(
        lambda: build_model(
            cfg, num_classes=5, num_frames=8, crop_size=32, dtype=jnp.bfloat16, remat=True, rngs=nnx.Rngs(0)
        )
    )
    for model in (abstract("r3d_10", head=head, **fields), built):
        assert model.stem.conv.kernel.shape == (7, 7, 7, 2, 4) and model.in_channels == 2
        changes = {
            "widths": SMALL,
            "stem": "7x7x7",
            "stem_pool": "3d",
            "block_dropout": 0.25,
            "stochastic_depth": 0.125,
        }
        assert model.spec == dataclasses.replace(model_spec("r3d_10"), **changes, temporal_strides=(2, 1, 1))
        block = model.stages[3].blocks[0]
        assert (block.dropout.rate, block.stochastic_depth.rate, block.conv1.strides) == (0.25, 0.125, (1, 2, 2))
        assert block.conv1.kernel.shape == (3, 3, 3, 8, 16)
        assert {layer.dtype for layer in (model.stem.conv, block.conv2, block.shortcut.conv)} == {jnp.bfloat16}
        assert model.head.blocks[0].linear1.dtype == model.head.blocks[0].attention.dtype == jnp.bfloat16
        assert model.remat and model.head.classifier.kernel.shape == (16, 5)
        assert model.head.tokenizer.positions.shape == (2, 1, 1, 16)
    plain: Any = nnx.eval_shape(
        lambda: build_model(ModelConfig(), num_classes=5, num_frames=8, crop_size=64, rngs=nnx.Rngs(0))
    )
    assert plain.stem.conv.dtype == jnp.float32 and not plain.remat


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 4}, r"^config\.data\.num_frames=4: s3d needs clips of at least 5 frames$"),
        ({"crop_size": 16}, r"^config\.data\.crop_size=16: s3d needs crops of at least 17 pixels$"),
    ],
)
@pytest.mark.parametrize("head", ["vit", "avgpool"])
def test_clips_of_which_nothing_would_be_left(head: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.create_model("s3d", num_classes=3, head=head, rngs=nnx.Rngs(0), **fields)


def test_inceptions_take_what_they_have() -> None:
    model = abstract("i3d", num_frames=8, crop_size=64, in_channels=2, dtype=jnp.bfloat16)
    assert model.stem.unit.conv.kernel.shape == (7, 7, 7, 2, 64) and model.stem.unit.conv.dtype == jnp.bfloat16
    assert model.head.window == (2, 7, 7) and abstract("r3d_10").head.window == (1, 1, 1)
    assert messages(lambda: abstract("s3d", block_dropout=0.1)) == (
        "model.block_dropout=0.1: this family has no such choice; leave it at its default"
    )


def test_one_set_of_keys_gives_other_weights_to_every_network() -> None:
    """The keys are those that `nnx.Rngs` would have given, and it goes on after them."""
    rngs = nnx.Rngs(3)
    make = lambda: models.create_model("r2d_10", num_classes=5, num_frames=4, widths=SMALL, rngs=rngs)  # noqa: E731
    first = make()
    used = int(rngs.params.count[...])
    second = make()
    # twelve convolutions, scale and bias of their BN and of the classifier
    assert used == 12 + 2 * 12 + 2 and int(rngs.params.count[...]) == 2 * used
    kernels: Any = [nnx.state(model, nnx.Param) for model in (first, second)]
    a, b = (np.array(jax.tree.leaves(kernel["stem"])[0]) for kernel in kernels)
    assert not np.array_equal(a, b)
    again = nnx.Rngs(3)
    keys = [again.params() for _ in range(used)]
    init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    last: Any = first.stages[3]
    for layer in (first.stem.conv, last.blocks[0].shortcut.conv):  # type: ignore[union-attr]
        value = np.array(layer.kernel[...])
        assert sum(np.array_equal(value, init(key, value.shape, jnp.float32)) for key in keys) == 1
