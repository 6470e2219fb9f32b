"""What may change between a run and its continuation."""

import contextlib
import dataclasses
from pathlib import Path

import pytest

from r23d_jax.config import Config, UserError, flat
from r23d_jax.config.motion import MOTIONS
from r23d_jax.data.find.trained_videos import digests, were_among
from r23d_jax.training import resume
from tests.data.find.frame_sets import videos


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


@pytest.mark.parametrize("sources", [("frames", "packed"), ("packed", "frames")])
def test_packed_frames_are_the_same_videos(sources: tuple[str, str], tmp_path: Path) -> None:
    resume.refuse_another_run({"data.source": sources}, tmp_path)
    with pytest.raises(UserError, match=r"^config\.data\.source='pictures': .* 'frames', so on other videos: give"):
        resume.refuse_another_run({"data.source": ("frames", "pictures")}, tmp_path)


@pytest.mark.parametrize("name", ["train.global_batch_size", "data.repeats"])
def test_steps_of_another_size_are_refused(name: str, tmp_path: Path) -> None:
    message = rf"^config\.{name}=8: .* was trained with 16, and its steps would be counted .* set config\.train\.accum"
    with pytest.raises(UserError, match=message):
        resume.refuse_another_run({name: (16, 8)}, tmp_path)


def test_a_complete_run_has_the_weights_that_it_was_started_from(tmp_path: Path) -> None:
    resume.refuse_other_settings({"init_from": ("runs/a", "moved/a")}, 2.0, tmp_path)
    for change, words in ((("", "runs/a"), "from random weights"), (("runs/a", ""), "from runs/a")):
        with pytest.raises(UserError, match=rf"^config\.init_from=.* is complete, and was started {words}: give an"):
            resume.refuse_other_settings({"init_from": change}, 2.0, tmp_path)


MAY_CHANGE = """
checkpoint.every_steps checkpoint.keep compilation_cache data.augment_on data.lists data.max_broken_fraction
data.num_workers data.on_broken data.remote_cache data.root data.shuffle_shards data.source eval.batch_size
eval.checkpoint eval.nearest fusion.choice fusion.first fusion.first_root fusion.scores fusion.second fusion.second_root
fusion.weight init_from logging.project logging.to parallel.fsdp parallel.remat profile train.eval_every train.log_every
"""


def test_what_may_change_in_a_complete_run(tmp_path: Path) -> None:
    """Nothing that its figures depend on."""
    accepted = set()
    for name in flat(dataclasses.asdict(Config())):
        with contextlib.suppress(UserError):
            resume.refuse_other_settings({name: (1.0, 2.0)}, 2.0, tmp_path)
            accepted.add(name)
    assert accepted == set(MAY_CHANGE.split())


def test_a_complete_run_says_how_to_go_on(tmp_path: Path) -> None:
    for changed, message in (
        (
            {"seed": (0, 1)},
            r"^config\.seed=1: .* is complete, and was trained with 0: give .* above 2 to train on$",
        ),
        ({"train.epochs": (9.0, 2.0)}, r"^config\.train\.epochs=2\.0: .* trained with 9\.0: .* above 9 to train on$"),
        ({"eval.crops": (1, 3)}, r"^config\.eval\.crops=3: .* evaluated with 1: add --mode=eval to evaluate it again$"),
    ):
        with pytest.raises(UserError, match=message):
            resume.refuse_other_settings(changed, 2.0, tmp_path)


def test_a_changed_training_list_is_told_and_what_is_gone_stays_known(tmp_path: Path) -> None:
    """Such as after a broken video was removed."""
    lines: list[str] = []

    def keep(kept: str, train: list[str], test: list[str], complete: bool = False) -> str:
        return resume.videos_to_keep(kept, videos(train), videos(test), tmp_path, complete, lines.append)

    first = keep("", ["a", "b", "c"], ["t"])
    assert first == digests(videos(["a", "b", "c"])) == keep(first, ["a", "b", "c"], ["t"], complete=True) and not lines
    second = keep(first, ["a", "c", "d", "e"], ["t"])
    assert lines == [
        "the training videos have changed since the checkpoint (2 new, 1 gone): this is another training from here on"
    ]
    assert were_among(second, videos(["a", "b", "c", "d", "e", "t"])).tolist() == [True] * 5 + [False]
    assert keep(second, ["a", "c", "d", "e"], ["t"]) == second and len(lines) == 1
    assert keep(first, ["a", "b"], ["t"]) != first and "(0 new, 1 gone)" in lines[-1]
    assert keep(first, ["c", "b", "a"], ["t"]) and "(in another order)" in lines[-1]
    with pytest.raises(UserError, match=r"was trained on 1 of the 2 videos that are evaluated now, e\.g\. b: the"):
        keep(second, ["a", "c"], ["t", "b"])
    with pytest.raises(UserError, match=r"is complete, and was trained on other videos .* \(0 new, 1 gone\): give an"):
        keep(first, ["a", "c"], ["t"], complete=True)
    rows = videos(["train/0", "train/1"], named=False)  # of shards without names
    assert resume.videos_to_keep(first, rows, rows, tmp_path, True, lines.append) == first and digests(rows) == ""


def test_a_video_is_the_same_in_lists_of_any_format() -> None:
    kept = digests(videos(["v_Dive_g01_c01", "001", "Walk/p1/002", "caf\udce9"], ("Walk",)))
    others = ["Dive/v_Dive_g01_c01", "walk/001", "Walk/p2/002", "Walk/p1/002", "caf\udce8"]
    assert were_among(kept, videos(others, ("Walk",))).tolist() == [True, True, False, True, False]
    assert not were_among(kept, videos(["001"], ("Run",))).any(), "each class has its 001"
    assert not were_among("not base64", videos(["a"])).any()
    moving = digests(videos(["v_Dive_g01_c01", "Walk/001"], MOTIONS))
    rows = [f"{name} {motion}" for name in ("v_Dive_g01_c01", "Walk/001", "Walk/002") for motion in MOTIONS]
    seen = were_among(moving, videos(rows, MOTIONS))
    assert seen.tolist() == [True] * 2 * len(MOTIONS) + [False] * len(MOTIONS)
