"""What may change between a run and its continuation."""

import dataclasses
from pathlib import Path

import pytest

from r23d_jax.config import Config, UserError, flat
from r23d_jax.training import resume


def test_a_field_that_is_newer_than_the_checkpoint_has_not_changed() -> None:
    old = dataclasses.asdict(Config())
    del old["data"]["shuffle_shards"]
    assert resume.changed_fields(old, Config(seed=1)) == {"seed": (0, 1)}


def test_another_stem_is_refused(tmp_path: Path) -> None:
    cfg = Config()
    cfg.model.stem = "motion"
    message = (
        r"^config\.model\.stem='motion': .* was trained with '': give another --workdir, or --config\.model\.stem=$"
    )
    with pytest.raises(UserError, match=message):
        resume.refuse_another_run(resume.changed_fields(dataclasses.asdict(Config()), cfg), tmp_path)
    resume.refuse_another_run(resume.changed_fields(dataclasses.asdict(cfg), cfg), tmp_path)


def test_fields_without_effect_exist_and_are_accepted_for_a_complete_run(tmp_path: Path) -> None:
    fields = flat(dataclasses.asdict(Config()))
    assert resume._WITHOUT_EFFECT <= set(fields)
    moved = {"data.root": ("here", "there"), "eval.crops": (1, 3), "logging.to": ((), ("wandb",))}
    resume.refuse_other_settings(moved, 2.0, tmp_path)
    with pytest.raises(
        UserError, match=r"^config\.seed=1: .* is complete, and was trained with 0: .* above 2 to train on"
    ):
        resume.refuse_other_settings(moved | {"seed": (0, 1)}, 2.0, tmp_path)
