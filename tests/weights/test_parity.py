"""Every code base's network and ours, side by side: every stage, the logits, one training step, and the way back."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")

from flax import nnx  # noqa: E402

import r23d_jax  # noqa: E402
from r23d_jax.models.functional import split_model  # noqa: E402
from r23d_jax.weights.matching import find, table_of  # noqa: E402
from r23d_jax.weights.state_dicts import convert, rename, to_arrays  # noqa: E402
from tests.weights import torch_networks as peers  # noqa: E402

pytestmark = pytest.mark.parity

NARROW = (8, 12, 16, 24)
MC3 = ("3d", "2d", "2d", "2d")
TV: dict[str, Any] = {"stem": "factorized", "mid_planes": "per_block"}
VMZ: dict[str, Any] = {"stem": "factorized", "bn_epsilon": 1e-3}
CSN: dict[str, Any] = {"stem_pool": "2d", "bn_epsilon": 1e-3}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network of another code base, narrowed, and the same in our words."""

    source: str
    theirs: Callable[[], Any]
    name: str
    fields: tuple[tuple[str, Any], ...] = (("widths", NARROW), ("num_classes", 7))
    shape: tuple[int, ...] = (2, 8, 32, 32, 3)
    gradients: float = 5e-4  # tolerance, ten times what was seen; max-pools choose among almost equal values

    def ours(self) -> r23d_jax.models.VideoNetwork:
        return nnx.eval_shape(lambda: r23d_jax.create_model(self.name, rngs=nnx.Rngs(0), **dict(self.fields)))


def style(*args: Any, **fields: Any) -> Callable[[], Any]:
    return lambda: peers.torchvision_style(*args, **{"widths": NARROW, "classes": 7} | fields)


BARE = (("widths", NARROW), ("num_classes", 0), ("head", "none"))
POOLED = (("widths", NARROW), ("num_classes", 7), ("stem_pool", "2d"))
SEVEN = (("num_classes", 7),)
CASES = {
    "published_r3d": Case("published", style(18, "3d", block_dropout=0.3), "r3d_18"),
    "published_mc3": Case("published", style(10, MC3, block_dropout=0.3), "mc3_10"),
    "published_r2plus1d": Case("published", style(10, "2plus1d", block_dropout=0.3, **TV), "r2plus1d_tv_10"),
    "published_2d3d_18": Case("2d3d", lambda: peers.resnet_2d3d(18, widths=NARROW), "r2plus3d_18", BARE),
    "dpc_50": Case("2d3d", lambda: peers.resnet_2d3d(50, "resnet.", NARROW), "r2plus3d_50", BARE),
    "vmz": Case("vmz", style(18, "2plus1d", **VMZ), "r2plus1d_18"),
    "vmz_50": Case("vmz", style(50, "2plus1d", stem_pool="2d", **VMZ), "r2plus1d_50", POOLED),
    "ir_csn_50": Case("vmz_csn", style(50, "ir_csn", **CSN), "ir_csn_50"),
    "ip_csn_50": Case("vmz_ip_csn", style(50, "ip_csn", **CSN), "ip_csn_50"),
    "mmaction": Case("mmaction2", lambda: peers.mmaction(10, NARROW, 7), "r2plus1d_mmaction_10"),
    "hara": Case("hara", lambda: peers.hara(10, NARROW, 7), "r2plus1d_hara_10"),
    "hara_50": Case("hara", lambda: peers.hara(50, NARROW, 7), "r2plus1d_hara_50"),
    "hara_r3d": Case("hara_r3d", lambda: peers.hara_r3d(10, NARROW, 7), "r3d_hara_10"),
    "hara_r3d_50": Case("hara_r3d", lambda: peers.hara_r3d(50, NARROW, 7), "r3d_hara_50"),
    "hara_2018": Case(
        "hara_2018", lambda: peers.hara_r3d(18, NARROW, 7, "A"), "r3d_hara_a_18", shape=(2, 9, 50, 50, 3)
    ),
    "i3d_piergiaj": Case(
        "i3d_piergiaj", lambda: peers.i3d(peers.PIERGIAJ, 3, 7), "i3d_gamma", SEVEN, (2, 16, 64, 64, 3), 2e-2
    ),
    "i3d_hassony2_flow": Case(
        "i3d_hassony2",
        lambda: peers.i3d(peers.HASSONY2, 2, 7),
        "i3d_gamma",
        (*SEVEN, ("in_channels", 2)),
        (2, 17, 49, 49, 2),
    ),
}


def to_ours(value: Any) -> np.ndarray:
    value = value.detach().numpy()
    return value.transpose(0, 2, 3, 4, 1) if value.ndim == 5 else value


def clip(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def assert_close(ours: Any, theirs: np.ndarray, what: str, tolerance: float = 1e-4) -> None:
    error = float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())
    assert error <= tolerance, f"{what}: {error:.1e} of the largest value"


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest) -> tuple[Case, Any, Any]:
    """The case, their network with random weights and statistics, and ours filled from it."""
    case = CASES[request.param]
    theirs = peers.randomize(case.theirs())
    return case, theirs, r23d_jax.from_torch(theirs.state_dict(), case.ours())


def test_every_stage_and_the_logits(pair: tuple[Case, Any, Any]) -> None:
    """float32 through up to 152 layers: 1e-4 of the largest value."""
    case, theirs, ours = pair
    x = clip(case.shape)
    theirs.eval()
    with torch.no_grad():
        tensor = torch.tensor(x.transpose(0, 4, 1, 2, 3))
        stages = [to_ours(stage) for stage in theirs.stages(tensor)]
        logits = to_ours(theirs(tensor))

    @jax.jit
    def run(model: Any, x: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        outputs = [model.stem(x)]
        for stage in model.stages:
            outputs.append(stage(outputs[-1]))
        return outputs, model(x)

    outputs, ours_logits = run(ours, x)
    for index, (mine, yours) in enumerate(zip(outputs, stages, strict=True)):
        assert mine.shape == yours.shape
        assert_close(mine, yours, f"stage {index}")
    assert_close(ours_logits, logits, "logits")


def test_the_way_back_is_bit_exact(pair: tuple[Case, Any, Any]) -> None:
    case, theirs, ours = pair
    state = to_arrays(ours, case.source)
    prefix = "resnet." if "resnet.conv1.weight" in theirs.state_dict() else ""
    expected = {name.removeprefix(prefix): value.numpy() for name, value in theirs.state_dict().items()}
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name, strict=True)
    theirs.load_state_dict({prefix + name: torch.tensor(value) for name, value in state.items()})


# Every kind of layer once; deeper networks repeat them.
TRAINED = (
    "published_r3d", "published_r2plus1d", "published_2d3d_18", "vmz", "ip_csn_50", "mmaction", "hara",
    *(pytest.param(key, marks=pytest.mark.long) for key in ("published_mc3", "hara_2018", "i3d_piergiaj")),
)  # fmt: skip


@pytest.mark.parametrize("key", TRAINED)
def test_one_training_step(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, gradients and new running statistics of one step, without dropout, and with softplus for ReLU in both.

    With ReLU torch's own float32 gradients are up to 60 % away from its float64 ones here: an activation within
    rounding of zero goes the other way, and BN over a few values amplifies it. torch keeps the unbiased variance, we
    keep the biased one: what torch has is turned into ours with the number of values that each layer saw.
    """
    monkeypatch.setattr(torch.nn.functional, "relu", lambda x, inplace=False: torch.nn.functional.softplus(x))
    monkeypatch.setattr(nnx, "relu", nnx.softplus)
    case = CASES[key]
    theirs = peers.randomize(case.theirs())
    ours = r23d_jax.from_torch(theirs.state_dict(), case.ours())
    frames, size = case.shape[1], max(case.shape[2], 48)  # BN over a handful of values would amplify rounding
    x, labels = clip((4, frames, size, size, case.shape[-1])), np.array([3, 5, 1, 2])
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    counts: dict[str, int] = {}
    hooks = []
    module: Any
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = 0.1

            def count(module: Any, inputs: tuple, output: Any, name: str = name) -> None:
                counts[name] = inputs[0].numel() // inputs[0].shape[1]

            hooks.append(module.register_forward_hook(count))
    theirs.train()
    out = theirs(torch.tensor(x.transpose(0, 4, 1, 2, 3)))
    out = out.mean(dim=(2, 3, 4)) if out.ndim == 5 else out
    loss = torch.nn.functional.cross_entropy(out, torch.tensor(labels))
    loss.backward()
    for hook in hooks:
        hook.remove()
    after = theirs.state_dict()

    network, params, batch_stats = split_model(ours)
    momentum = ours.spec.bn_momentum

    @jax.jit
    def step(params: Any, batch_stats: Any) -> tuple:
        def loss_fn(params: Any) -> tuple:
            logits, new_stats = network.apply_train(params, batch_stats, jnp.asarray(x), jax.random.key(0))
            logits = logits.mean(axis=(1, 2, 3)) if logits.ndim == 5 else logits
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new_stats

        return jax.value_and_grad(loss_fn, has_aux=True)(params)

    (ours_loss, new_stats), grads = step(params, batch_stats)
    prefix = "resnet." if "resnet.conv1.weight" in before else ""
    np.testing.assert_allclose(ours_loss, loss.item(), rtol=1e-4)
    table = table_of(ours, case.source)
    named = rename(table, grads)
    norms = {name: float(p.grad.norm()) for name, p in theirs.named_parameters() if p.grad is not None}
    whole = max(norms.values())
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None, name
        error = np.linalg.norm(named[name.removeprefix(prefix)] - parameter.grad.numpy())
        assert error <= case.gradients * max(norms[name], 1e-3 * whole), f"{name}: {error / norms[name]:.1e}"
    named = rename(table, new_stats)
    for module, n in counts.items():
        name = module.removeprefix(prefix)
        for leaf, factor in (("running_mean", 1.0), ("running_var", (n - 1) / n)):
            old, new = before[f"{module}.{leaf}"].numpy(), after[f"{module}.{leaf}"].numpy()
            batch = (new - 0.9 * old) / 0.1 * factor
            expected = momentum * old + (1 - momentum) * batch
            np.testing.assert_allclose(named[f"{name}.{leaf}"], expected, rtol=1e-4, atol=1e-4, err_msg=module)


# -- full size, by names and shapes alone ------------------------------------------------------------------------------

FULL = {
    "r2plus1d_34": ("vmz", lambda: peers.torchvision_style(34, "2plus1d", **VMZ)),
    "r2plus1d_152": ("vmz", lambda: peers.torchvision_style(152, "2plus1d", stem_pool="2d", **VMZ)),
    "ir_csn_152": ("vmz_csn", lambda: peers.torchvision_style(152, "ir_csn", **CSN)),
    "ip_csn_152": ("vmz_ip_csn", lambda: peers.torchvision_style(152, "ip_csn", **CSN)),
    "r3d_18": ("torchvision", lambda: peers.torchvision_style(18, "3d", block_dropout=0.3)),
    "mc3_18": ("torchvision", lambda: peers.torchvision_style(18, MC3)),
    "r2plus1d_tv_18": ("torchvision", lambda: peers.torchvision_style(18, "2plus1d", **TV)),
    "r2plus3d_18": ("2d3d", lambda: peers.resnet_2d3d(18)),
    "r2plus3d_34": ("2d3d", lambda: peers.resnet_2d3d(34, "module.backbone.", track=False)),
    "r2plus3d_50": ("2d3d", lambda: peers.resnet_2d3d(50, "resnet.")),
    "r2plus1d_mmaction_34": ("mmaction2", lambda: peers.mmaction(34)),
    "r2plus1d_hara_18": ("hara", lambda: peers.hara(18)),
    "r2plus1d_hara_50": ("hara", lambda: peers.hara(50)),
    "r2plus1d_hara_200": ("hara", lambda: peers.hara(200)),
    **{f"r3d_hara_{depth}": ("hara_r3d", functools.partial(peers.hara_r3d, depth)) for depth in (10, 18, 34, 50, 101)},
    **{f"r3d_hara_{depth}": ("hara_r3d", functools.partial(peers.hara_r3d, depth)) for depth in (152, 200)},
    "r3d_hara_a_18": ("hara_2018", lambda: peers.hara_r3d(18, shortcut="A")),
    "r3d_hara_a_34": ("hara_2018", lambda: peers.hara_r3d(34, shortcut="A")),
    "i3d_gamma": ("i3d_piergiaj", lambda: peers.i3d(peers.PIERGIAJ)),
}


@pytest.mark.parametrize("name", FULL)
def test_full_size_networks_are_told_from_names_and_shapes(name: str) -> None:
    source, build = FULL[name]
    with torch.device("meta"):
        theirs = build()
    state = theirs.state_dict()
    zero = np.zeros((), np.float32)
    found = find({key.removeprefix("module."): np.broadcast_to(zero, value.shape) for key, value in state.items()})
    assert (found.candidate.name, found.source) == (name, source)
    trained = (entry for entry in found.table.entries if entry.path[-1] not in ("mean", "var"))
    assert sum(math.prod(entry.shape) for entry in trained) == sum(value.numel() for value in theirs.parameters())
    assert found.num_classes == (0 if source == "2d3d" else 400)
    assert dict(found.candidate.fields).get("stem_pool", "") == ("2d" if name == "r2plus1d_152" else "")


def test_without_running_statistics_training_mode_agrees() -> None:
    """DPC trains with track_running_stats=False: its network always uses the batch's statistics."""
    theirs = peers.randomize(peers.resnet_2d3d(18, "backbone.", NARROW, track=False)).eval()
    case = CASES["published_2d3d_18"]
    state = theirs.state_dict() | {"agg.weight": torch.zeros(3), "network_pred.0.weight": torch.zeros(3)}
    ours = r23d_jax.from_torch(state, case.ours())
    x = clip(case.shape)
    with torch.no_grad():
        expected = to_ours(theirs(torch.tensor(x.transpose(0, 4, 1, 2, 3))))
    network, params, batch_stats = split_model(ours)
    features, _ = jax.jit(network.apply_train)(params, batch_stats, jnp.asarray(x), jax.random.key(0))
    assert_close(features, expected, "features")


@pytest.mark.parametrize(
    ("ours", "theirs"), [("r3d_18", "r3d_18"), ("mc3_18", "mc3_18"), ("r2plus1d_tv_18", "r2plus1d_18")]
)
def test_torchvision_itself(ours: str, theirs: str, torchvision_video: Any) -> None:
    peer = peers.randomize(getattr(torchvision_video, theirs)(weights=None, num_classes=7)).eval()
    model = r23d_jax.from_torch(peer.state_dict(), ours)
    x = clip((2, 4, 32, 32, 3))
    with torch.no_grad():
        want = peer(torch.tensor(x.transpose(0, 4, 1, 2, 3))).numpy()
    assert_close(jax.jit(lambda model, x: model(x))(model, x), want, "logits")
    back = to_arrays(model)
    peer.load_state_dict({name: torch.tensor(value) for name, value in back.items()})
    assert all(np.array_equal(back[name], value.numpy()) for name, value in peer.state_dict().items())


@pytest.mark.parametrize("name", [pytest.param("s3d", marks=pytest.mark.long), "s3d_g"])
def test_torchvision_s3d(name: str, torchvision_video: Any) -> None:
    """At 224, because its head needs 7 x 7 places; its last pool and the mean of windows count as they do there."""
    peer: Any = torchvision_video.s3d(weights=None, num_classes=7)
    peer = peers.randomize(peers.add_gates(peer) if name == "s3d_g" else peer).eval()
    model = r23d_jax.from_torch(peer.state_dict())
    assert model.spec == r23d_jax.models.model_spec(name)
    x = clip((1, 24, 224, 224, 3))
    with torch.no_grad():
        tensor = torch.tensor(x.transpose(0, 4, 1, 2, 3))
        want, features = peer(tensor).numpy(), to_ours(peer.features(tensor))
    run = jax.jit(lambda model, x: (model.features(x), model(x)))
    ours_features, logits = run(model, x)
    assert_close(ours_features, features, "features")
    assert_close(logits, want, "logits")
    back = to_arrays(model)
    assert back.keys() == peer.state_dict().keys()
    assert all(np.array_equal(back[name], value.numpy()) for name, value in peer.state_dict().items())


@pytest.mark.parametrize("key", ["hara_r3d", "hara_2018"])
def test_logits_against_float64(key: str) -> None:
    """Theirs in float64 leaves our own float32 rounding alone: 1e-5 of the largest logit."""
    case = CASES[key]
    theirs: Any = peers.randomize(case.theirs()).eval()
    ours = r23d_jax.from_torch(theirs.state_dict(), case.ours())
    x = clip(case.shape)
    with torch.no_grad():
        want = theirs.double()(torch.tensor(x.transpose(0, 4, 1, 2, 3)).double()).numpy()
    assert_close(jax.jit(lambda model, x: model(x))(ours, x), want, "logits", tolerance=1e-5)


def test_a_training_checkpoint_of_3d_resnets(tmp_path: Path) -> None:
    """main.py saves `epoch`, `arch`, `state_dict`, `optimizer` and `scheduler`, of a network in DataParallel."""
    theirs = peers.hara_r3d(18, classes=700)
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    content = {"epoch": 200, "arch": "resnet-18", "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(content | {"scheduler": {"last_epoch": 200, "milestones": {50: 1}}}, tmp_path / "r3d18_K_200ep.pth")
    found = convert(tmp_path / "r3d18_K_200ep.pth")
    assert (found.name, found.source, found.num_classes) == ("r3d_hara_18", "hara_r3d", 700)
    assert found.preprocessing.mean == (0.4345, 0.4051, 0.3775) and not found.preprocessing.byte_range
    old = convert(tmp_path / "r3d18_K_200ep.pth", source="hara_2018").preprocessing
    assert old.mean == (114.7748, 107.7354, 99.475) and old.std == (1.0, 1.0, 1.0) and old.byte_range
