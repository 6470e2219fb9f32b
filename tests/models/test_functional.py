"""A module taken apart computes what it computed whole."""

import jax
import numpy as np
from flax import nnx

from r23d_jax import models
from r23d_jax.models.functional import split_model


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
