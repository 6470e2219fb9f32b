"""Classes that a mirror image turns into each other."""

import os
from pathlib import Path

import pytest

from r23d_jax.commands import train
from r23d_jax.config import ConfigError, DataConfig, validate
from r23d_jax.data import sources
from r23d_jax.data.find.directions import mirrored_pairs, mirrors, refuse_mirrored_views
from r23d_jax.data.find.splits import read_list
from tests.data.find.frame_sets import write_videos

HMDB51 = (
    "brush_hair cartwheel catch chew clap climb climb_stairs dive draw_sword dribble drink eat fall_floor fencing "
    "flic_flac golf handstand hit hug jump kick kick_ball kiss laugh pick pour pullup punch push pushup ride_bike "
    "ride_horse run shake_hands shoot_ball shoot_bow shoot_gun sit situp smile smoke somersault stand "
    "swing_baseball sword sword_exercise talk throw turn walk wave "
).split()
# Names of Kinetics and UCF101 that speak of hands and turns, or sound like it
ONE_WAY = [
    "LeftHook", "cartwheel", "flic_flac", "shoot_ball", "swing_baseball", "turn", "somersault", "brightening something",
    "bending back", "high kick", "tying knot (not on a tie)", "massaging person's head", "playing trumpet", "upright",
    "BoxingPunchingBag", "HandstandPushups", "TaiChi", "copyright",
]  # fmt: skip


def test_pairs() -> None:
    something = ["Pulling something from left to right", "Pulling something from right to left", "Pushing it left"]
    assert mirrored_pairs(something) == [(something[0], something[1])]
    assert mirrored_pairs(["swipe_left", "SwipeRight", "turnLeftward", "Turn rightward"]) == [
        ("SwipeRight", "swipe_left"), ("Turn rightward", "turnLeftward")
    ]  # fmt: skip
    jester = ["Turning Hand Clockwise", "Turning Hand Counterclockwise", "Swiping Left", "Swiping Right", "No gesture"]
    assert len(mirrored_pairs(jester)) == 2
    assert mirrored_pairs(["anti-clockwise", "clockwise"]) == [("anti-clockwise", "clockwise")]
    assert len(HMDB51) == 51 and mirrored_pairs(HMDB51) == mirrored_pairs(ONE_WAY) == mirrored_pairs([]) == []


def test_the_setting_wins_and_auto_asks_the_names() -> None:
    pair = ("Left", "Right")
    assert [mirrors(flip, pair) for flip in ("auto", True, False)] == [False, True, False]
    assert [mirrors(flip, ONE_WAY) for flip in ("auto", True, False)] == [True, True, False]


@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")  # ml_collections' own way to run a file
def test_the_setting_on_the_command_line() -> None:
    def flip(*override: str) -> object:
        return validate(train._parse(["--config=configs/r23d.py", *override], "").config).data.flip

    assert flip() == "auto" and flip("--config.data.flip=auto") == "auto"
    assert flip("--config.data.flip=True") is flip("--config.data.flip") is flip("--config.data.flip=true") is True
    assert flip("--config.data.flip=False") is flip("--noconfig.data.flip") is False
    with pytest.raises(ConfigError, match=r"config\.data\.flip='yes': must be True or False, or 'auto'"):
        flip("--config.data.flip=yes")


@pytest.mark.real_clips
def test_ucf101_is_mirrored(real_data: Path) -> None:
    names = read_list(real_data / "ucf101_splits", "train").class_names
    assert len(names) == 101 and mirrors("auto", names)


@pytest.mark.parametrize(("flip", "noted"), [("auto", True), (True, False), (False, False)])
def test_the_log_says_that_clips_are_not_mirrored(tmp_path: Path, flip: object, noted: bool) -> None:
    write_videos(tmp_path / "frames", [3, 4])
    (tmp_path / "train.csv").write_text("v_Class0_g00_c01.avi,Turn left\nv_Class1_g02_c01.avi,Turn right\n")
    (tmp_path / "val.csv").write_text("v_Class1_g01_c01.avi,Turn right\n")
    cfg = DataConfig(root=str(tmp_path / "frames"), lists=str(tmp_path), flip=flip)
    told = ["are mirror images" in os.linesep.join(sources.open_index(cfg, side).notes) for side in ("train", "test")]
    assert told == [noted, False]


def test_ten_crops_are_refused_where_a_mirror_image_has_another_class() -> None:
    refuse_mirrored_views(10, "auto", ["Diving", "Rowing"])
    refuse_mirrored_views(3, "auto", ["Left", "Right"])
    refuse_mirrored_views(10, True, ["Left", "Right"])
    message = (
        r"^config\.eval\.crops=10: half of these views are mirrored, and a mirror image of 'Left' is 'Right': set "
    )
    with pytest.raises(ConfigError, match=message):
        refuse_mirrored_views(10, "auto", ["Left", "Right"])
    with pytest.raises(
        ConfigError, match=r"crops=10: .*, and config\.data\.flip is False: set --config\.eval\.crops=3"
    ):
        refuse_mirrored_views(10, False, ["Diving", "Rowing"])
