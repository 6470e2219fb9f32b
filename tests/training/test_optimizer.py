"""Update rules against torch's, schedules at their corners, groups and frozen parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r23d_jax.config import ConfigError, OptimizerConfig
from r23d_jax.training.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    check_names,
    count_steps,
    make_optimizer,
    make_schedule,
    notes,
)

PARAMS = {
    "stem": {"conv": {"kernel": jnp.asarray([[0.5, -1.0], [2.0, 0.3]])}, "norm": {"scale": jnp.ones(2)}},
    "stages": {"0": {"kernel": jnp.full((2,), 0.7)}, "1": {"kernel": jnp.full((2,), -0.7)}},
    "head": {"kernel": jnp.asarray([1.0, -2.0]), "bias": jnp.asarray([0.1])},
}


def grads(step: int) -> dict:
    return jax.tree.map(lambda p: jnp.sin(p * 3 + step), PARAMS)


def steps(cfg: OptimizerConfig, count: int = 5) -> dict:
    tx, _ = make_optimizer(cfg, PARAMS, steps_per_epoch=1, num_steps=count)
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(count):
        updates, state = tx.update(grads(step), state, params)
        params = optax.apply_updates(params, updates)
    return params  # type: ignore[return-value]


def constant(**fields) -> OptimizerConfig:
    return OptimizerConfig(**{"schedule": "constant", "warmup_epochs": 0.0, "clip_norm": 0.0} | fields)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_five_steps_equal_torch(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    cfg = constant(name=name, learning_rate=0.05, momentum=0.8, b2=0.95, weight_decay=0.1, nesterov=True)
    leaves, structure = jax.tree.flatten_with_path(PARAMS)
    tensors = [torch.nn.Parameter(torch.tensor(np.array(leaf))) for _, leaf in leaves]
    decayed = [path[-1].key == "kernel" for path, _ in leaves]
    groups = [
        {"params": [t for t, d in zip(tensors, decayed, strict=True) if d], "weight_decay": 0.1},
        {"params": [t for t, d in zip(tensors, decayed, strict=True) if not d], "weight_decay": 0.0},
    ]
    if name == "sgd":
        theirs = torch.optim.SGD(groups, lr=0.05, momentum=0.8, nesterov=True)
    else:
        theirs = torch.optim.AdamW(groups, lr=0.05, betas=(0.8, 0.95))
    for step in range(5):
        for tensor, grad in zip(tensors, jax.tree.leaves(grads(step)), strict=True):
            tensor.grad = torch.tensor(np.array(grad))
        theirs.step()
    for ours, tensor in zip(jax.tree.leaves(steps(cfg)), tensors, strict=True):
        np.testing.assert_allclose(ours, tensor.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert structure == jax.tree.structure(PARAMS)


def test_lars_scales_by_the_trust_ratio() -> None:
    """You et al. 2017: without momentum and decay a kernel moves by rate * coefficient * its own norm."""
    cfg = constant(name="lars", learning_rate=0.1, momentum=0.0, weight_decay=0.0, nesterov=False)
    moved = steps(cfg, count=1)
    delta = moved["head"]["kernel"] - PARAMS["head"]["kernel"]
    np.testing.assert_allclose(
        jnp.linalg.norm(delta), 0.1 * 0.001 * jnp.linalg.norm(PARAMS["head"]["kernel"]), rtol=1e-3
    )
    bias = moved["head"]["bias"] - PARAMS["head"]["bias"]  # no trust ratio
    np.testing.assert_allclose(bias, -0.1 * grads(0)["head"]["bias"], rtol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_its_definition(nesterov: bool) -> None:
    """Only kernels are decayed and scaled; the momentum is of the scaled steps, as in optax and in MLPerf."""
    cfg = constant(name="lars", learning_rate=0.2, momentum=0.7, weight_decay=0.3, nesterov=nesterov)
    moved = steps(cfg, count=5)["head"]
    for name in ("kernel", "bias"):
        value, trace = np.array(PARAMS["head"][name], np.float64), 0.0
        for step in range(5):
            gradient = np.array(grads(step)["head"][name], np.float64)
            if name == "kernel":
                gradient = gradient + 0.3 * value
                gradient = gradient * 0.001 * np.linalg.norm(value) / np.linalg.norm(gradient)
            update = -0.2 * gradient
            trace = update + 0.7 * trace
            value = value + (update + 0.7 * trace if nesterov else trace)
        np.testing.assert_allclose(moved[name], value, rtol=1e-4, err_msg=name)


def test_multipliers_and_frozen_parts() -> None:
    fields = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    cfg = constant(**fields, backbone_multiplier=0.5, head_multiplier=3.0, freeze=("stem", "stage2"))
    moved = steps(cfg, count=1)
    delta = jax.tree.map(lambda a, b: a - b, moved, PARAMS)
    np.testing.assert_array_equal(moved["stem"]["conv"]["kernel"], PARAMS["stem"]["conv"]["kernel"])
    np.testing.assert_array_equal(moved["stages"]["1"]["kernel"], PARAMS["stages"]["1"]["kernel"])
    np.testing.assert_allclose(delta["stages"]["0"]["kernel"], -0.05 * grads(0)["stages"]["0"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(delta["head"]["kernel"], -0.3 * grads(0)["head"]["kernel"], rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_weight_decay_leaves_frozen_parts_alone(name: str) -> None:
    params = steps(constant(name=name, weight_decay=0.5, freeze=("stem", "stage2")))
    for part in (lambda tree: tree["stem"], lambda tree: tree["stages"]["1"]):
        jax.tree.map(np.testing.assert_array_equal, part(params), part(PARAMS))
    assert np.all(params["stages"]["0"]["kernel"] != PARAMS["stages"]["0"]["kernel"])


def test_clipping_uses_the_norm_of_what_is_trained() -> None:
    fields = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    moved = steps(constant(**fields, clip_norm=0.01, freeze=("stem",)), count=1)
    delta = jax.tree.map(lambda a, b: a - b, moved, PARAMS)
    np.testing.assert_allclose(optax.tree.norm(delta), 0.01, rtol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill_by_groups(name: str) -> None:
    """Decay does not move frozen parts, a multiplier of 0 stops a group, and the rest comes nearer to its minimum."""
    cfg = constant(name=name, learning_rate=0.01, weight_decay=0.1, head_multiplier=0.0, freeze=("stem",))
    tx, _ = make_optimizer(cfg, PARAMS, steps_per_epoch=1, num_steps=20)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(20):
        updates, state = tx.update(params, state, params)  # the gradient of half the squared distance to 0
        params = optax.apply_updates(params, updates)
    for part in ("stem", "head"):
        jax.tree.map(np.testing.assert_array_equal, params[part], PARAMS[part])  # type: ignore[index]
    for moved, start in zip(jax.tree.leaves(params["stages"]), jax.tree.leaves(PARAMS["stages"]), strict=True):  # type: ignore[index]
        assert np.all(np.abs(moved) < np.abs(start))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_warms_up_to_the_full_rate_and_never_exceeds_it(schedule: str) -> None:
    cfg = OptimizerConfig(learning_rate=0.4, schedule=schedule, warmup_epochs=1.0, milestones=(5.0,))
    rates = np.array([make_schedule(cfg, steps_per_epoch=10, num_steps=100)(step) for step in range(101)])
    np.testing.assert_allclose(rates[:10], 0.4 * np.arange(1, 11) / 10, rtol=1e-5)
    assert np.all(rates >= -1e-7) and np.all(np.diff(rates[9:]) <= 1e-7)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("cosine", {9: 1.0, 10: 1.0, 55: 0.5, 100: 0.0}),
        ("cosine_7_16", {9: 1.0, 10: 1.0, 100: np.cos(7 * np.pi / 16)}),
        ("multistep", {19: 1.0, 20: 0.1, 49: 0.1, 50: 0.01, 99: 0.01}),
        ("constant", {10: 1.0, 99: 1.0}),
    ],
)
def test_schedules(schedule: str, factors: dict[int, float]) -> None:
    """Ten steps an epoch: one epoch of warm-up, 100 steps in all, milestones after two and five epochs."""
    cfg = OptimizerConfig(
        learning_rate=0.4, schedule=schedule, warmup_epochs=1.0, milestones=(2.0, 5.0), decay_factor=0.1
    )
    rate = make_schedule(cfg, steps_per_epoch=10, num_steps=100)
    np.testing.assert_allclose([float(np.asarray(rate(k))) for k in range(10)], 0.4 * np.arange(1, 11) / 10, rtol=1e-5)
    for step, factor in factors.items():
        np.testing.assert_allclose(rate(step), 0.4 * factor, rtol=1e-4, atol=1e-7)


def test_schedules_at_their_ends() -> None:
    """After the last step nothing moves any more; a run that is all warm-up ends at the full rate."""
    for name in SCHEDULES:
        cfg = OptimizerConfig(learning_rate=0.4, schedule=name, warmup_epochs=1.0, milestones=(2.0,))
        rate = make_schedule(cfg, steps_per_epoch=10, num_steps=100)
        np.testing.assert_array_equal(rate(100), rate(150))
        np.testing.assert_allclose(make_schedule(cfg, steps_per_epoch=10, num_steps=10)(9), 0.4, rtol=1e-6)
    one = make_schedule(OptimizerConfig(learning_rate=0.4, schedule="cosine", warmup_epochs=1.0), 10, 11)
    np.testing.assert_allclose(one(11), 0.0, atol=1e-7)
    fine = OptimizerConfig(learning_rate=0.4, schedule="multistep", warmup_epochs=0.25, milestones=(0.46,))
    rate = make_schedule(fine, steps_per_epoch=10, num_steps=100)
    np.testing.assert_allclose(
        [float(np.asarray(rate(k))) for k in range(6)], [0.2, 0.4, 0.4, 0.4, 0.4, 0.04], rtol=1e-6
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_known_names_are_accepted_without_parameters(name: str, schedule: str) -> None:
    check_names(OptimizerConfig(name=name, schedule=schedule, warmup_epochs=2.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, r"config\.optimizer\.name='adam': unknown; did you mean adamw\?"),
        ({"name": "zzz"}, r"config\.optimizer\.name='zzz': unknown; known: sgd, adamw, lars"),
        ({"schedule": "cosin"}, r"config\.optimizer\.schedule='cosin': unknown; did you mean cosine"),
    ],
)
def test_an_unknown_name_is_refused(fields: dict, message: str) -> None:
    cfg = OptimizerConfig(**fields)
    for refuse in (lambda: check_names(cfg), lambda: make_optimizer(cfg, PARAMS, steps_per_epoch=1, num_steps=1)):
        with pytest.raises(ConfigError, match=message):
            refuse()


@pytest.mark.parametrize(
    ("videos", "batch", "epochs", "steps"),
    [(9537, 36, 60.0, 15_895), (250, 60, 30.0, 125), (24, 4, 0.01, 1), (25, 4, 1.0, 7)],
)
def test_steps_are_counted_without_an_error_of_rounding(videos: int, batch: int, epochs: float, steps: int) -> None:
    assert count_steps(epochs, videos / batch) == steps


def test_a_schedule_that_a_training_does_not_get_through_is_told() -> None:
    cfg = OptimizerConfig()
    cfg.warmup_epochs, cfg.schedule, cfg.milestones = 5.0, "multistep", (30.0, 60.0)
    assert notes(cfg, 90.0) == []
    warm, late = notes(cfg, 2.0)
    assert "warmup_epochs=5 is not shorter than the training of 2 epochs: it ends with the learning rate at 40%" in warm
    assert "milestones=(30.0, 60.0): 2 of them are not before the end, after 2 epochs" in late
    cfg.schedule = "cosine"
    assert notes(cfg, 45.0) == []
