"""A module taken apart computes what it computed whole."""

import jax
import numpy as np
import pytest
from flax import nnx

from r23d_jax import models
from r23d_jax.models.functional import bare, flatten, initialize, initializer_options, split_model


def small() -> models.VideoNetwork:
    return models.create_model(
        "mc3_10", num_classes=5, num_frames=4, crop_size=16, widths=(4, 6, 8, 8), rngs=nnx.Rngs(0)
    )


CLIP = jax.random.normal(jax.random.key(0), (2, 4, 16, 16, 3))


def test_apart_and_whole_compute_the_same() -> None:
    model = small()
    network, params, batch_stats = split_model(model)
    whole = jax.jit(lambda model, x: model(x))(model, CLIP)  # left in evaluation mode
    np.testing.assert_allclose(jax.jit(network.apply_eval)(params, batch_stats, CLIP), whole, atol=1e-6)
    again = jax.jit(lambda model, x: model(x))(network.build(params, batch_stats), CLIP)
    np.testing.assert_allclose(again, whole, atol=1e-6)


def test_trees_are_dicts_with_string_keys_and_hold_every_value_once() -> None:
    network, params, batch_stats = split_model(nnx.eval_shape(small))

    def check(tree: dict) -> None:
        for key, value in tree.items():
            assert type(key) is str and (type(value) is dict or isinstance(value, jax.ShapeDtypeStruct))
            if type(value) is dict:
                check(value)

    check(params)
    check(batch_stats)
    assert set(params) == {"stem", "stages", "head"}
    count = len(jax.tree.leaves(params)) + len(jax.tree.leaves(batch_stats))
    assert count == len(jax.tree.leaves(network.template))


def test_statistics_move_but_for_frozen_parts() -> None:
    network, params, batch_stats = split_model(small(), frozen=("stem", "stage2"))
    _, after = jax.jit(network.apply_train)(params, batch_stats, CLIP, jax.random.key(0))
    moved = {
        part: any(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), old, new)))
        for part, old, new in [
            ("stem", batch_stats["stem"], after["stem"]),
            *((f"stage{int(k) + 1}", batch_stats["stages"][k], after["stages"][k]) for k in batch_stats["stages"]),
        ]
    }
    assert moved == {"stem": False, "stage1": True, "stage2": False, "stage3": True, "stage4": True}


def test_training_mode_is_the_modules_own() -> None:
    """Batch statistics, and dropout by the key, in every part that is not frozen."""
    model = models.create_model(
        "r3d_10", num_classes=5, num_frames=4, crop_size=16, widths=(4, 6, 8, 8), block_dropout=0.5, rngs=nnx.Rngs(0)
    )
    network, params, batch_stats = split_model(model)
    key = jax.random.key(3)
    logits, after = jax.jit(network.apply_train)(params, batch_stats, CLIP, key)
    model.train()
    whole = nnx.jit(lambda model, x, key: model(x, nnx.Rngs(dropout=key)))(model, CLIP, key)
    np.testing.assert_allclose(logits, whole, atol=1e-6)
    _, _, stats = split_model(model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after, stats)
    # all parts frozen: nothing is drawn, and the logits are those of evaluation
    frozen = split_model(model, frozen=("stem", "stage1", "stage2", "stage3", "stage4"))[0]
    still, same = jax.jit(frozen.apply_train)(params, batch_stats, CLIP, key)
    np.testing.assert_allclose(still, jax.jit(frozen.apply_eval)(params, batch_stats, CLIP), atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, same, batch_stats)


def test_a_module_is_left_in_evaluation_mode_and_built_in_it() -> None:
    model = small()
    model.train()
    network, params, batch_stats = split_model(model, frozen=("stage1",))
    built = network.build(params, batch_stats)
    for module in (model, built):
        for _, part in nnx.iter_modules(module):
            if isinstance(part, nnx.BatchNorm):
                assert part.use_running_average
            if isinstance(part, nnx.Dropout):
                assert part.deterministic
    built.stem.conv.kernel[...] = built.stem.conv.kernel[...] * 2  # a copy: neither the trees nor the module change
    np.testing.assert_array_equal(model.stem.conv.kernel[...], params["stem"]["conv"]["kernel"])  # type: ignore[union-attr]
    assert built.spec == model.spec


def test_values_come_back_under_their_own_names() -> None:
    """Every leaf gets another number, so that none can take another's place."""
    network, params, batch_stats = split_model(nnx.eval_shape(small))
    leaves, structure = jax.tree.flatten((params, batch_stats))
    numbered = [np.full(leaf.shape, k, leaf.dtype) for k, leaf in enumerate(leaves)]
    params, batch_stats = jax.tree.unflatten(structure, numbered)
    built = network.build(params, batch_stats)
    _, again, stats = split_model(built)
    jax.tree.map(np.testing.assert_array_equal, (again, stats), (params, batch_stats))
    flat = flatten({"params": params, "stats": batch_stats})
    assert flat["params", "stages", "3", "blocks", "0", "conv1", "kernel"].shape == (1, 3, 3, 8, 8)
    assert flat["stats", "stem", "norm", "norm", "mean"].shape == (4,) and len(flat) == len(leaves)
    assert flatten({}) == {}


class Loaded:
    """Has a network, as what `load_model` returns does."""

    def __init__(self, model: models.VideoNetwork):
        self.model = model


def test_an_object_that_has_a_network_stands_for_it() -> None:
    model = nnx.eval_shape(small)
    assert bare(model) is model is bare(Loaded(model))
    own, other = split_model(model)[1:], split_model(Loaded(model))[1:]
    assert jax.tree.structure(own) == jax.tree.structure(other)


def test_initialization_in_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values of the module's own constructor, in evaluation mode; not optimized where that takes the time."""
    options = []
    jit = jax.jit
    monkeypatch.setattr(jax, "jit", lambda f, **how: options.append(how) or jit(f, **how))
    made = initialize(small)
    assert options == [{"compiler_options": {"xla_backend_optimization_level": "0"}}]
    for own, want in zip(split_model(made)[1:], split_model(small())[1:], strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), own, want)
    assert made.stem.norm.norm.use_running_average  # type: ignore[union-attr]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert initializer_options() == {}
