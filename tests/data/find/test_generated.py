"""Pictures that are drawn from numbers."""

import numpy as np
import tensorflow as tf

from r23d_jax.data.find.generated import GeneratedFrames, draw_picture
from r23d_jax.data.read.decode import decode_windows, frame_reader, read_clip


def test_the_numbers_decide_the_picture() -> None:
    one = draw_picture((3, 4), 40, 60)
    assert one.shape == (40, 60, 3) and one.dtype == np.uint8 and one.std() > 15
    np.testing.assert_array_equal(one, draw_picture((3, 4), 40, 60))
    for other in ((3, 5), (4, 3), (3, 4, 1)):
        assert np.mean(one != draw_picture(other, 40, 60)) > 0.9


def test_any_two_windows_differ() -> None:
    """A window that moves by one pixel must look different, or its motion cannot be seen."""
    for number in range(20):
        picture = draw_picture((number, 0), 80, 100).astype(int)
        for axis in (0, 1):
            assert np.mean(np.diff(picture, axis=axis) != 0) > 0.5


def test_the_reader_gives_what_is_drawn() -> None:
    frames = GeneratedFrames(np.array([7, 2]), 40, 60)
    contents = read_clip(frame_reader(frames), tf.constant(1), tf.constant([3, 0], tf.int32))
    decoded = decode_windows(contents, lambda height, width: tf.stack([0, 0, height, width])).numpy()
    for pixels, frame in zip(decoded, (3, 0), strict=True):
        np.testing.assert_array_equal(pixels, draw_picture((2, frame), 40, 60)[..., ::-1])  # drawn as BGR
    assert frames.locate(1, 3) == "generated picture 3 of 2" and frames.problem(1, 3) is None
