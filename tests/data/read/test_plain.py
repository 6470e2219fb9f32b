"""The center crop without TensorFlow is the center crop with it, bit for bit."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from r23d_jax.config import DataConfig, preprocessing
from r23d_jax.data.read import augment, decode, plain


@pytest.mark.parametrize("antialias", [False, True])
def test_resize_gives_the_very_pixels_of_training(antialias: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(15):
        height, width, size = (int(value) for value in rng.integers(4, 260, 3))
        windows = rng.integers(0, 256, (2, height, width, 3), np.uint8)
        expected = decode.resize(tf.constant(windows), size, antialias).numpy()
        np.testing.assert_array_equal(plain.resize(windows, size, antialias), expected)
    same = rng.integers(0, 256, (1, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(plain.resize(same, 8, antialias), same)


def test_the_window_is_the_one_of_an_evaluation() -> None:
    for short_side, crop_size in ((136, 112), (128, 112), (48, 48), (256, 224), (112, 128)):
        cfg = DataConfig(short_side=short_side, crop_size=crop_size)
        for height, width in ((1, 1), (7, 300), (240, 320), (129, 128), (33, 31), (85, 60)):
            args = tf.constant(0), tf.constant(height), tf.constant(width)
            expected = augment.eval_window(cfg, 1, *args).numpy().tolist()
            assert list(plain.center_window(preprocessing(cfg), height, width)) == expected


def encoded(suffix: str, height: int, width: int, *options: int) -> bytes:
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(suffix, cv2.GaussianBlur(noise, (0, 0), 2), options)[1].tobytes()


@pytest.mark.parametrize(
    ("suffix", "options", "columns"),
    [
        (".png", (), 0),
        (".bmp", (), 0),
        (".jpg", (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444), 0),
        (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), 1),
        (".jpg", (), 1),
    ],
)
def test_decoded_windows_differ_in_one_column_of_subsampled_jpegs_only(
    suffix: str, options: tuple[int, ...], columns: int
) -> None:
    pre = preprocessing(DataConfig())
    for height, width in ((60, 80), (240, 320), (77, 53), (128, 171)):
        contents = [encoded(suffix, height, width, *options)] * 2
        expected = decode.decode_windows(
            [tf.constant(content) for content in contents],
            lambda height, width: tf.constant(plain.center_window(pre, int(height), int(width))),
        )
        found = plain.decode_windows(contents, lambda height, width: plain.center_window(pre, height, width))
        differs = np.abs(found.astype(int) - expected.numpy().astype(int)).max(axis=(0, 1, 3))
        assert np.count_nonzero(differs) <= columns and not differs[:-1].any()


def test_what_is_wrong_with_a_picture_is_named() -> None:
    jpeg, png = encoded(".jpg", 40, 50), encoded(".png", 40, 50)
    assert plain.examine_picture(jpeg) == plain.examine_picture(png) == (None, (40, 50))
    assert plain.examine_picture(jpeg[:-200]) == ("truncated JPEG", None)
    assert plain.examine_picture(png[:60]) == ("damaged picture", None)
    assert plain.examine_picture(b"no picture")[0] == "not a picture (it begins with b'no pictu')"
    huge = png[:16] + (60_000).to_bytes(4, "big") * 2 + png[24:]
    assert "60000x60000 pixels, more than the" in str(plain.examine_picture(huge)[0])
    with pytest.raises(plain.PictureError, match="the frames have different sizes"):
        plain.decode_windows([jpeg, encoded(".jpg", 41, 50)], lambda height, width: (0, 0, 4, 4))
    with pytest.raises(plain.PictureError, match="truncated JPEG"):
        plain.decode_windows([jpeg, jpeg[:-200]], lambda height, width: (0, 0, 4, 4))
