"""Crop windows against their definitions, and what is done to pixels."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from r23d_jax.config import ConfigError, DataConfig
from r23d_jax.data.read import augment

ALMOST_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def _windows(cfg: DataConfig, height: int, width: int, count: int = 200) -> np.ndarray:
    """(count, 4) windows for random draws."""
    draws = np.random.default_rng(0).random((count, augment.WINDOW_DRAWS), np.float32)
    draws[0], draws[1] = 0, ALMOST_ONE
    window = tf.function(lambda d: augment.training_window(cfg, d, tf.constant(height), tf.constant(width)))
    windows = np.array([window(tf.constant(d)) for d in draws])
    assert windows.dtype == np.int32
    top, left, high, wide = windows.T
    assert np.all((top >= 0) & (left >= 0) & (high >= 1) & (wide >= 1))
    assert np.all((top + high <= height) & (left + wide <= width))
    return windows


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (24, 32), (1, 1)])
@pytest.mark.parametrize("crop", ["multi_scale", "random_resized", "random", "center"])
def test_every_window_lies_in_the_frame(crop: str, size: tuple[int, int]) -> None:
    _windows(DataConfig(crop=crop), *size, count=40)


@pytest.mark.parametrize("crop", augment.WINDOWS)
def test_the_canvas_holds_a_window_that_was_resized_to_the_crop(crop: str) -> None:
    cfg = DataConfig(crop=crop, crop_scales=(0.5,), short_side=48, crop_size=40)
    assert min(augment.canvas_size(cfg)) >= cfg.crop_size


def test_multi_scale_is_the_published_crop() -> None:
    """Five scales of the short side, at any position: sides int(240 * scale), drawn evenly."""
    windows = _windows(DataConfig(), 240, 320, count=400)
    np.testing.assert_array_equal(windows[:, 2], windows[:, 3])
    sides, counts = np.unique(windows[:, 2], return_counts=True)
    assert sides.tolist() == [int(240 * s) for s in (0.5, 0.5946, 0.7071, 0.8409, 1.0)]
    assert counts.min() > 50
    largest = windows[windows[:, 2] == 240]
    assert np.all(largest[:, 0] == 0) and largest[:, 1].min() < 8 and largest[:, 1].max() > 72
    # the smallest crops reach all sides
    smallest = windows[windows[:, 2] == 120]
    assert smallest[:, 0].min() < 8 and smallest[:, 0].max() > 112
    assert smallest[:, 1].min() < 10 and smallest[:, 1].max() > 190


def test_random_crop_is_crop_size_at_the_scale_of_short_side() -> None:
    windows = _windows(DataConfig(crop="random"), 240, 320)
    assert set(windows[:, 2]) == set(windows[:, 3]) == {round(240 * 112 / 136)}
    assert {windows[:, 0].min(), windows[:, 1].min()} == {0}
    assert (windows[:, 0].max(), windows[:, 1].max()) == (240 - 198, 320 - 198)
    # a frame smaller than short_side is enlarged: the window keeps its share of the frame
    assert set(_windows(DataConfig(crop="random"), 60, 80)[:, 2]) == {round(60 * 112 / 136)}
    exact = DataConfig(crop="random", short_side=48, crop_size=48)
    assert set(map(tuple, _windows(exact, 48, 56)[:, [0, 2, 3]])) == {(0, 48, 48)}
    assert set(_windows(exact, 48, 56)[:, 1]) == set(range(9))


def test_center_crop() -> None:
    assert set(map(tuple, _windows(DataConfig(crop="center"), 240, 320, 5))) == {(21, 61, 198, 198)}


def test_random_resized_crop() -> None:
    windows = _windows(DataConfig(crop="random_resized", crop_area=(0.25, 0.5)), 240, 320, count=400).astype(float)
    area = windows[:, 2] * windows[:, 3] / (240 * 320)
    aspect = windows[:, 3] / windows[:, 2]
    assert 0.245 < area.min() < 0.27 and 0.47 < area.max() < 0.505
    assert 0.74 < aspect.min() < 0.78 and 1.27 < aspect.max() < 1.34
    assert 0.45 < np.mean(aspect < 1) < 0.65  # log-uniform
    # no try fits: the whole of a very wide frame's height, 4/3 as wide
    windows = _windows(DataConfig(crop="random_resized", crop_area=(0.9, 1.0)), 100, 1000, count=10)
    assert set(map(tuple, windows)) == {(0, (1000 - 133) // 2, 100, 133)}
    windows = _windows(DataConfig(crop="random_resized", crop_area=(0.9, 1.0)), 1000, 100, count=10)
    assert set(map(tuple, windows)) == {((1000 - 133) // 2, 0, 133, 100)}


def test_eval_windows() -> None:
    cfg = DataConfig()
    side = round(240 * 112 / 136)

    def corners(crops: int, height: int, width: int) -> list[tuple[int, ...]]:
        got = [
            augment.eval_window(cfg, crops, tf.constant(k), tf.constant(height), tf.constant(width)).numpy()
            for k in range(crops)
        ]
        assert all(g[2] == g[3] == side for g in got)
        return [tuple(g[:2].tolist()) for g in got]

    down, right = 240 - side, 320 - side
    center = (down // 2, right // 2)
    assert corners(1, 240, 320) == [center]
    assert corners(3, 240, 320) == [(down // 2, 0), center, (down // 2, right)]
    assert corners(3, 320, 240) == [(0, down // 2), center[::-1], (right, down // 2)]
    five = [(0, 0), (0, right), (down, 0), (down, right), center]
    assert corners(10, 240, 320) == five + five
    mirrored = [bool(augment.is_mirrored(10, tf.constant(k))) for k in range(10)]
    assert mirrored == [False] * 5 + [True] * 5
    assert not any(bool(augment.is_mirrored(3, tf.constant(k))) for k in range(3))
    with pytest.raises(ConfigError, match=r"config\.eval\.crops=2: unknown; known: 1, 3, 10"):
        corners(2, 240, 320)


def _jitter(strength: float, draws: list[float], video: np.ndarray) -> np.ndarray:
    low = max(0.0, 1.0 - strength)
    factors = low + np.array(draws, np.float32) * (1.0 + strength - low)
    return augment.jitter_colors(tf.constant(factors, tf.float32), tf.constant(video)).numpy()


def test_color_jitter_is_its_definition_and_the_same_in_all_frames() -> None:
    video = np.random.default_rng(0).uniform(0, 255, (4, 6, 5, 3)).astype(np.float32)
    draws = [0.1, 0.7, 0.9]
    brightness, contrast, saturation = (0.6 + 0.8 * d for d in draws)
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    want = np.clip(video * brightness, 0, 255)
    mean = (want @ luma).mean()
    want = np.clip(mean + (want - mean) * contrast, 0, 255)
    gray = (want @ luma)[..., None]
    want = np.clip(gray + (want - gray) * saturation, 0, 255)
    np.testing.assert_allclose(_jitter(0.4, draws, video), want, atol=1e-3)

    still = np.broadcast_to(video[:1], video.shape)
    jittered = _jitter(0.4, draws, still)
    assert np.all(jittered == jittered[:1]) and not np.allclose(jittered, still)
    np.testing.assert_allclose(_jitter(0.0, draws, video), video, atol=1e-3)
    strong = _jitter(3.0, [0.0, 0.5, 0.5], video)  # brightness 0, never negative
    assert strong.min() >= 0 and strong.max() == 0


def test_hues_turn_in_the_plane_of_colors_and_keep_the_luma() -> None:
    draw = augment.AUGMENTATIONS["hue_jitter"].draw
    matrices = [draw(DataConfig(hue_jitter=0.25), tf.constant([0, k], tf.int64)).numpy() for k in range(200)]
    luma = np.array([0.299, 0.587, 0.114])
    video = np.random.default_rng(0).uniform(100, 150, (2, 4, 3, 3)).astype(np.float32)
    angles = []
    for matrix in matrices:
        np.testing.assert_allclose(np.ones(3) @ matrix, np.ones(3), atol=2e-3)  # gray stays; NTSC's digits are few
        np.testing.assert_allclose(matrix @ luma, luma, atol=1e-5)
        turned = augment.turn_hues(tf.constant(matrix), tf.constant(video)).numpy()
        np.testing.assert_allclose(turned @ luma, video @ luma, atol=1e-2)
        angles.append(np.arctan2((turn := augment._YIQ @ matrix.T @ np.linalg.inv(augment._YIQ))[2, 1], turn[1, 1]))
        np.testing.assert_allclose(turn[1:, 1:] @ turn[1:, 1:].T, np.eye(2), atol=1e-4)
    turns = np.array(angles) / (2 * np.pi)
    assert -0.25 <= turns.min() < -0.2 and 0.2 < turns.max() <= 0.25 and abs(turns.mean()) < 0.03
    still = draw(DataConfig(hue_jitter=1e-9), tf.constant([0, 0], tf.int64))
    np.testing.assert_allclose(augment.turn_hues(still, tf.constant(video)), video, atol=1e-2)
    bright = augment.turn_hues(tf.constant(matrices[0]), tf.constant([[[[255.0, 0.0, 0.0]]]]))
    assert 0.0 <= bright.numpy().min() and bright.numpy().max() <= 255.0


def test_a_gray_clip_has_the_luma_in_all_channels_and_comes_as_often_as_asked_for() -> None:
    video = np.random.default_rng(0).uniform(0, 255, (4, 6, 5, 3)).astype(np.float32)
    luma = (video @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    gray, same = (augment.remove_colors(tf.constant(yes), tf.constant(video)).numpy() for yes in (True, False))
    np.testing.assert_allclose(gray, np.broadcast_to(luma, video.shape), atol=1e-3)
    np.testing.assert_array_equal(same, video)
    draw = augment.AUGMENTATIONS["random_gray"].draw
    often = [bool(draw(DataConfig(random_gray=0.3), tf.constant([0, k], tf.int64))) for k in range(400)]
    assert 0.22 < np.mean(often) < 0.38


def _on(name: str) -> bool | float:
    return True if isinstance(getattr(DataConfig(flip=True), name), bool) else 0.5


def test_draws_of_an_augmentation_do_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched off, switched on, or added before it: each gets the key that its name gives it."""
    seen: dict[str, list[int]] = {}

    def recorded(name: str):
        def draw(cfg: DataConfig, key: tf.Tensor) -> tf.Tensor:
            seen[name] = key.numpy().tolist()
            return key

        return augment.Augmentation(draw, lambda drawn, clip: clip, colors=False)

    def keys(table: list[str], on: list[str], clip: int = 7) -> dict[str, list[int]]:
        seen.clear()
        monkeypatch.setattr(augment, "AUGMENTATIONS", {name: recorded(name) for name in table})
        fields: dict[str, Any] = {name: 0 for name in table} | {name: _on(name) for name in on}
        cfg = DataConfig(**fields)
        augment.draw_numbers(cfg, tf.constant([3, clip], tf.int64))
        return dict(seen)

    names = list(augment.AUGMENTATIONS)
    together = keys(names, names)
    assert list(together) == names and len({tuple(key) for key in together.values()}) == len(names)
    for name in names:
        assert keys(names, [name]) == {name: together[name]}
        assert keys(names, [name], clip=8) != {name: together[name]}
    more = keys(["antialias", *names], ["antialias", *names])
    assert {name: more[name] for name in names} == together and more["antialias"] not in together.values()


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_every_augmentation_keeps_the_shape_and_follows_its_key(name: str) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    fields: dict[str, Any] = {"flip": False} | {name: _on(name)}
    cfg = DataConfig(**fields)

    def change(key: int) -> np.ndarray:
        changed = augment.augment_clip(augment.draw_numbers(cfg, tf.constant([0, key], tf.int64)), tf.constant(clip))
        assert changed.dtype == tf.uint8 and changed.shape == clip.shape
        return changed.numpy()

    changed = [change(key) for key in range(12)]
    np.testing.assert_array_equal(changed[0], change(0))
    assert len({clip.tobytes() for clip in changed}) > 1
    assert any(not np.array_equal(other, clip) for other in changed)


def test_rounding_and_mirroring() -> None:
    video = tf.constant([[[[0.0, 0.4, 0.6], [254.4, 254.6, 255.0]]]])
    assert augment.to_uint8(video).numpy().tolist() == [[[[0, 0, 1], [254, 255, 255]]]]
    clip = tf.constant(np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3))
    np.testing.assert_array_equal(augment.mirror(clip, tf.constant(True)), clip.numpy()[:, :, ::-1])
    np.testing.assert_array_equal(augment.mirror(clip, tf.constant(False)), clip)


def _pick(draw: np.float32, count: int) -> int:
    return min(int(draw * np.float32(count)), count - 1)


def _window(cfg: DataConfig, draws: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """The definition of every crop, in numpy."""
    short = min(height, width)
    if cfg.crop == "random_resized":
        low, high = cfg.crop_area
        areas = np.float32(height * width) * (np.float32(low) + draws[2:12] * np.float32(high - low))
        aspects = np.exp(np.log(3 / 4) + draws[12:22] * np.log((4 / 3) / (3 / 4)))
        for area, aspect in zip(areas, aspects, strict=True):
            wide, high_ = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 1 <= wide <= width and 1 <= high_ <= height:
                return _pick(draws[0], height - high_ + 1), _pick(draws[1], width - wide + 1), high_, wide
        wide, high_ = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        return (height - high_) // 2, (width - wide) // 2, high_, wide
    if cfg.crop == "multi_scale":
        scale = np.float32(cfg.crop_scales[_pick(draws[2], len(cfg.crop_scales))])
        side = max(int(scale * np.float32(short)), 1)
    else:
        side = min(max(round(short * cfg.crop_size / cfg.short_side), 1), short)
    if cfg.crop == "center":
        return (height - side) // 2, (width - side) // 2, side, side
    return _pick(draws[0], height - side + 1), _pick(draws[1], width - side + 1), side, side


@pytest.mark.parametrize("size", [(240, 320), (37, 29), (90, 100), (3, 500), (500, 3), (1, 1)])
@pytest.mark.parametrize(
    "cfg",
    [
        DataConfig(crop="multi_scale"),
        DataConfig(crop="multi_scale", crop_scales=(0.001, 0.3)),
        DataConfig(crop="random"),
        DataConfig(crop="random", crop_size=300, short_side=256),
        DataConfig(crop="center", crop_size=17, short_side=40),
        DataConfig(crop="random_resized"),
        DataConfig(crop="random_resized", crop_area=(0.6, 1.0)),
        DataConfig(crop="random_resized", crop_area=(1e-6, 1e-5)),
    ],
)
def test_every_window_is_its_definition(cfg: DataConfig, size: tuple[int, int]) -> None:
    """Roots and exponentials may be rounded to another pixel, in a few windows of a hundred."""
    draws = np.random.default_rng(1).random((60, augment.WINDOW_DRAWS), np.float32)
    window = tf.function(lambda d: augment.training_window(cfg, d, *map(tf.constant, size)))
    got = np.array([window(tf.constant(d)) for d in draws])
    want = np.array([_window(cfg, d, *size) for d in draws])
    same = (got == want).all(axis=1)
    assert same.all() if cfg.crop != "random_resized" else same.mean() > 0.9


def test_a_wrong_crop_is_refused_by_its_field() -> None:
    with pytest.raises(ConfigError, match=r"^config\.data\.crop='centre': unknown; did you mean center\?$"):
        augment.training_window(
            DataConfig(crop="centre"), tf.zeros(augment.WINDOW_DRAWS), tf.constant(2), tf.constant(3)
        )
    with pytest.raises(ConfigError, match=r"^config\.eval\.crops=2: unknown"):
        augment.eval_window(DataConfig(), 2, tf.constant(0), tf.constant(24), tf.constant(32))


def test_flow_changes_the_sign_of_x_when_it_is_mirrored() -> None:
    """128 is no motion; 0 has no opposite in a byte and becomes the largest."""
    flow = np.array([[[[0, 7], [1, 8]], [[128, 9], [129, 0]], [[255, 255], [127, 128]]]], np.uint8)
    mirrored = augment.mirror(tf.constant(flow), tf.constant(True)).numpy()
    assert mirrored.tolist() == [[[[255, 8], [255, 7]], [[127, 0], [128, 9]], [[129, 128], [1, 255]]]]
    assert mirrored.dtype == np.uint8
    np.testing.assert_array_equal(augment.mirror(tf.constant(flow), tf.constant(False)), flow)
    traced = tf.function(lambda video: augment.mirror(video, tf.constant(True)))
    for channels in (2, 3):
        shape = (2, 4, 6, channels)
        assert traced.get_concrete_function(tf.TensorSpec(shape, tf.uint8)).output_shapes == tf.TensorShape(shape)


def test_crops_of_a_frame_that_is_no_larger_than_the_crop() -> None:
    cfg = DataConfig(crop_size=224, short_side=112)
    for crops in (1, 3, 10):
        for crop in range(crops):
            got = augment.eval_window(cfg, crops, tf.constant(crop), tf.constant(20), tf.constant(30)).numpy()
            assert got.dtype == np.int32 and got[2:].tolist() == [20, 20] and got[0] == 0 and 0 <= got[1] <= 10
