"""Maps of what a network looks at: against closed forms, the layers' own weights, torch, and where a shape moves."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.special import softmax

from r23d_jax import models
from r23d_jax.config import ConfigError, DataConfig, HeadConfig, UserError, preprocessing
from r23d_jax.evaluation.explain import Explainer, attention, attention_weights, grad_cam, upsample
from r23d_jax.models.functional import split_model
from r23d_jax.models.heads import HeadPlace, make_head
from r23d_jax.models.preprocess import prepare_video
from tests.weights.random_networks import trained

NARROW = {"widths": (8, 12, 16, 24)}


def head_of(kind: str, window: tuple[int, int, int] = (1, 1, 1), **fields: Any) -> Any:
    place = HeadPlace(8, 5, (3, 2, 4), window, jnp.float32, nnx.Rngs(0))
    head = make_head(place, HeadConfig(kind=kind, num_heads=2, num_layers=2, **fields))
    head.eval()
    return head


def features(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("window", [(1, 1, 1), (2, 2, 3)])
def test_behind_an_average_the_map_is_the_classifiers_column(window: tuple[int, int, int]) -> None:
    """The mean over places of the gradient is the column over their number, also where border places count less."""
    head, x = head_of("avgpool", window), features(2, 3, 2, 4, 8)
    for target in range(5):
        want = jax.nn.relu(x @ head.classifier.kernel[...][:, target]) / (3 * 2 * 4)
        np.testing.assert_allclose(grad_cam(head, x, jnp.int32(target)), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "kind",
    ["avgpool", pytest.param("vit", marks=pytest.mark.slow), pytest.param("attention_pool", marks=pytest.mark.long)],
)
def test_a_map_is_of_its_clip_and_its_class(kind: str) -> None:
    head, x = head_of(kind), features(2, 3, 2, 4, 8)
    both = grad_cam(head, x, jnp.int32(1))
    assert both.shape == (2, 3, 2, 4) and both.min() >= 0 and both.max() > 0
    np.testing.assert_allclose(both[1:], grad_cam(head, x[1:], jnp.int32(1)), rtol=1e-4, atol=1e-6)
    assert np.abs(both - grad_cam(head, x, jnp.int32(2))).max() > 1e-3 * np.abs(both).max()


def test_weights_are_those_of_the_layer() -> None:
    """With them, its values and its last product, the layer's output follows."""
    layer, x = head_of("vit").blocks[0].attention, features(2, 24, 8)
    weights = attention_weights(layer, x, x)
    want = layer.out(jnp.einsum("bhqk,bkhd->bqhd", weights, layer.value(x)))
    np.testing.assert_allclose(layer(x), want, rtol=1e-4, atol=1e-6)
    assert float(jnp.ptp(weights)) > 1e-3, "equal weights would hide a wrong one"


def test_rollout_multiplies_what_every_block_passes_on() -> None:
    """Written out token by token for two blocks; nothing is lost, so CLS keeps what the tokens do not get."""
    head, x = head_of("vit"), features(1, 3, 2, 4, 8)
    tokens = jnp.concatenate([head.cls[...], head.tokenizer(x)], axis=1)
    passed = []
    for block in head.blocks:
        normed = block.norm1(tokens)
        passed.append(
            0.5 * np.eye(25) + 0.5 * np.asarray(attention_weights(block.attention, normed, normed)[0]).mean(0)
        )
        tokens = block(tokens)
    want = [sum(passed[1][0, k] * passed[0][k, token] for k in range(25)) for token in range(25)]
    assert sum(want) == pytest.approx(1, abs=1e-5)
    found = attention(head, x, jnp.int32(0))
    assert found.shape == (1, 3, 2, 4)
    np.testing.assert_allclose(found.ravel(), want[1:], rtol=1e-4)


def test_attention_follows_a_token_that_matches_the_query() -> None:
    head, x = head_of("attention_pool"), features(1, 3, 2, 4, 8) * 0.01
    key = head.token_norm(head.tokenizer(x))
    weights = attention_weights(head.attention, head.query[...], key)
    found = attention(head, x, jnp.int32(0))
    np.testing.assert_allclose(found.ravel(), np.asarray(weights[0, :, 0]).mean(0), rtol=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "attention_pool"])
def test_time_tokens_give_a_curve(kind: str) -> None:
    assert attention(head_of(kind, tokens="time"), features(2, 3, 2, 4, 8), jnp.int32(0)).shape == (2, 3, 1, 1)


def test_upsampling_is_linear_over_time_and_space() -> None:
    ramp = np.arange(4, dtype=np.float32)[:, None, None] + 10 * np.arange(2, dtype=np.float32)[None, :, None]
    large = upsample(np.repeat(ramp, 2, 2), 16, 4)
    np.testing.assert_allclose(large[2:-2, 0, 0], np.arange(12) / 4 + 0.125, atol=1e-5)
    np.testing.assert_allclose(large[0, :, 0], [0, 2.5, 7.5, 10], atol=1e-5)


# -- whole networks ----------------------------------------------------------------------------------------------------


def pre_of(num_frames: int = 4, size: int = 32, **fields: Any):
    return preprocessing(DataConfig(num_frames=num_frames, crop_size=size, short_side=size, **fields))


def clips(count: int, pre) -> np.ndarray:
    shape = (count, pre.read_frames, pre.crop_size, pre.crop_size, len(pre.mean))
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("name", "size", "frames"),
    [
        ("r2plus3d_10", 32, 4),
        pytest.param("i3d", 64, 16, marks=pytest.mark.slow),
        pytest.param("s3d_g", 64, 16, marks=pytest.mark.long),
    ],
)
def test_any_family(name: str, size: int, frames: int) -> None:
    fields = NARROW if name.startswith("r2") else {}
    model, pre = trained(name, num_frames=frames, crop_size=size, **fields), pre_of(frames, size)
    explain = Explainer(model, pre, batch_size=2)
    found = explain(clips(3, pre))
    video = jnp.asarray(clips(3, pre))
    want = jax.jit(lambda model, x: model(x))(model, prepare_video(video, pre))
    np.testing.assert_allclose(found.logits, want, rtol=1e-3, atol=1e-3 * float(jnp.abs(want).max()))
    assert found.target == int(want.mean(0).argmax())
    assert found.maps.shape == (3, *model.spec.feature_grid(frames, size)) and found.maps.max() == 1
    assert found.probabilities.sum() == pytest.approx(1)
    other = explain(clips(3, pre), target=(found.target + 1) % 7)
    assert other.target != found.target and np.abs(other.maps - found.maps).max() > 1e-2
    np.testing.assert_array_equal(explain(list(clips(3, pre))[:1], found.target).logits, found.logits[:1])


def test_heads_without_attention_are_refused() -> None:
    model = trained("r2plus3d_10", **NARROW)
    with pytest.raises(UserError, match="--method attention: AvgPoolHead has no attention; use --method gradcam"):
        Explainer(model, pre_of(), "attention")
    with pytest.raises(ConfigError, match="--method='gradcamm': .*gradcam"):
        Explainer(model, pre_of(), "gradcamm")


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["avgpool", "vit"])
def test_torch_hooks_give_the_same_map(kind: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    from r23d_jax.weights import portable, torch_definition
    from r23d_jax.weights.sources import definition_source
    from r23d_jax.weights.state_dicts import to_arrays

    head, pre = HeadConfig(kind=kind, num_heads=2, num_layers=2), pre_of(8)
    model = trained("r2plus3d_10", head=dataclasses.replace(head), num_frames=8, **NARROW)
    module = torch_definition.build(json.loads(json.dumps(portable.describe(model, head, 7)))).eval()
    state = to_arrays(model, definition_source(model))
    module.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    kept: dict[str, Any] = {}

    def keep(module: Any, inputs: Any, output: Any) -> None:
        output.register_hook(lambda gradient: kept.update(gradient=gradient))
        kept["features"] = output

    last: Any = module.layer4
    last.register_forward_hook(keep)
    video = clips(2, pre)
    prepared = np.asarray(prepare_video(jnp.asarray(video), pre))
    logits = module(torch.tensor(prepared.transpose(0, 4, 1, 2, 3)))
    explain, largest = Explainer(model, pre), []
    for target in range(7):
        logits[:, target].sum().backward(retain_graph=True)
        weights = kept["gradient"].mean((2, 3, 4), keepdim=True)
        want = torch.relu((weights * kept["features"]).sum(1)).detach().numpy()
        largest.append(want.max())
        # float32 through a whole network
        np.testing.assert_allclose(explain(video, target).maps, want / max(want.max(), 1e-30), atol=1e-4)
    assert max(largest) > 0, "some class has heat"


@pytest.mark.long
def test_the_heat_is_where_a_shape_moves() -> None:
    """Two classes, a square that moves left or right in one quarter of a noisy picture, learned from 8 x 64 x 64."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        video = np.repeat(rng.integers(60, 150, (count, 1, 64, 64, 3)), 8, 1).astype(np.uint8)
        label, corner = rng.integers(0, 2, count), rng.integers(0, 2, (count, 2))
        for clip, way, (down, across) in zip(video, label, corner, strict=True):
            for time in range(8):
                left = 32 * across + (2 * time if way else 16 - 2 * time) + 2
                top = 32 * down + 10
                clip[time, top : top + 12, left : left + 12] = 255
        return video, label, corner

    pre = pre_of(8, 64)
    model = models.create_model(
        "r3d_10", num_classes=2, head="avgpool", num_frames=8, crop_size=64, widths=(8, 12, 16, 24), rngs=nnx.Rngs(0)
    )
    network, params, batch_stats = split_model(model)
    tx = optax.adam(3e-3)

    @jax.jit
    def step(params, batch_stats, state, video, label, key):
        def loss(params):
            logits, new = network.apply_train(params, batch_stats, prepare_video(video, pre), key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), new, state, value

    state, value = tx.init(params), None
    for number in range(80):
        video, label, _ = draw(16)
        params, batch_stats, state, value = step(params, batch_stats, state, video, label, jax.random.key(number))
    explain = Explainer(network.build(params, batch_stats), pre, batch_size=1)
    hits, correct = [], []
    video, label, corner = draw(24)
    for clip, way, (down, across) in zip(video, label.tolist(), corner.tolist(), strict=True):
        found = explain([clip])
        correct.append(found.target == way)
        heat = upsample(found.maps[0], 8, 64).mean(0)
        quarters = heat.reshape(2, 32, 2, 32).mean((1, 3))
        hits.append(quarters[down, across] == quarters.max() and quarters.max() > 0)
    assert np.mean(correct) > 0.9, f"it has learned to tell the classes apart (loss {value})"
    assert np.mean(hits) > 0.9, "the quarter with the moving shape has the most heat"


def test_the_class_is_that_of_the_mean_probability() -> None:
    """As `predict` has it; one clip may have the highest logit of another class by far."""
    explainer: Any = object.__new__(Explainer)
    logits = np.array([[9.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert logits.mean(0).argmax() == 0 and softmax(logits, 1).mean(0).argmax() == 1
    explainer.__dict__.update(_batch_size=4, _values=None, _method="gradcam")
    explainer._features = lambda values, clips: (np.zeros((4, 1, 1, 1, 1)), logits)
    explainer._maps = lambda values, found, target: np.zeros((4, 1, 1, 1))
    found = explainer([np.zeros((1, 1, 1, 3), np.uint8)] * 4)
    assert found.target == found.probabilities.argmax() == 1
