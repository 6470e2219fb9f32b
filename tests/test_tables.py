"""The names that a config allows are the keys of the tables that build from them, and nothing else builds anything."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from r23d_jax import config
from r23d_jax.config import ConfigError, DataConfig, EvalConfig, preprocessing
from r23d_jax.data import sources
from r23d_jax.data.make import flow
from r23d_jax.data.read import augment, sampling, views
from r23d_jax.evaluation import fusion, two_stream
from r23d_jax.runtime import parallel


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (config.CROPS, augment.WINDOWS),
        (config.CROPS, augment.CANVAS_SIDES),
        (config.AUGMENT_ON, parallel.AUGMENT_PLACES),
        (config.SPATIAL_CROPS, augment.EVAL_CROPS),
        (config.TEMPORAL_SAMPLING, sampling.SAMPLING),
        (config.TEMPORAL_VIEWS, views.VIEWS),
        (config.SOURCES, sources.SOURCES),
        (config.FUSED_SCORES, fusion.SCORES),
        (config.FUSION_CHOICES, two_stream.CHOICES),
    ],
    ids=["crops", "canvases", "places", "evaluation crops", "sampling", "views", "sources", "scores", "choices"],
)
def test_allowed_names_are_the_keys_of_the_table(names: Collection, table: dict) -> None:
    assert tuple(names) == tuple(table)


def test_every_augmentation_has_a_field_that_switches_it_on() -> None:
    cfg = DataConfig(flip=True)  # by default the class names decide
    assert all(isinstance(getattr(cfg, name), (bool, int, float)) for name in augment.AUGMENTATIONS)


side, key = tf.constant(24), tf.constant([0, 0], tf.int64)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: augment.training_window(DataConfig(crop="centre"), tf.zeros(augment.WINDOW_DRAWS), side, side),
            "config.data.crop='centre': unknown; did you mean center",
        ),
        (
            lambda: sampling.training_frames(DataConfig(sampling="segment"), key, side),
            "config.data.sampling='segment': unknown; did you mean segments",
        ),
        (
            lambda: sources.open_index(DataConfig(source="pack"), "train"),
            "config.data.source='pack': unknown; did you mean packed",
        ),
        (
            lambda: preprocessing(DataConfig(input="rgbdiff")).read_frames,
            "config.data.input='rgbdiff': unknown; did you mean rgb_diff",
        ),
        (
            lambda: views.make_views(np.array([9]), preprocessing(DataConfig()), EvalConfig(views="denser")),
            "config.eval.views='denser': unknown; did you mean dense",
        ),
        (
            lambda: next(flow.flow_pictures([np.zeros((8, 8, 3), np.uint8)], "tvl", 1.0)),
            "flow='tvl': unknown; did you mean tvl1",
        ),
        (lambda: config.look_up({"a": 1}, ["a"], "config.x"), "config.x=['a']: unknown; known: a"),
    ],
    ids=["crop", "sampling", "source", "input", "views", "flow", "not hashable"],
)
def test_an_unknown_name_from_python_builds_nothing(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    assert message in str(error.value)
