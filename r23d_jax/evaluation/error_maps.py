"""Grad-CAM of wrongly classified videos for the report, read from the videos of an evaluation."""

import dataclasses
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from r23d_jax import config
from r23d_jax.config import Config, Preprocessing
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.read import plain
from r23d_jax.data.read.views import clip_steps, video_strides
from r23d_jax.evaluation import overlay
from r23d_jax.evaluation.explain import Explainer
from r23d_jax.evaluation.figures import escape, image
from r23d_jax.evaluation.result import EvalResult
from r23d_jax.models.functional import HasNetwork
from r23d_jax.models.network import VideoNetwork

_WIDTH, _QUALITY = 1130, 80  # pixels, as wide as the page; of a JPEG


@dataclasses.dataclass(frozen=True)
class IndexedVideo:
    """One video of an index, read at a given stride."""

    index: VideoIndex
    video: int
    pre: Preprocessing
    stride: float

    def count(self) -> int:
        return int(self.index.num_frames[self.video])

    def clips(self, starts: np.ndarray) -> Iterator[np.ndarray]:
        pre = self.pre
        numbers = (starts[:, None] + clip_steps(pre.read_frames, self.stride)) % self.count()
        for row in numbers.tolist():
            contents = [self.index.frames.read(self.video, number) for number in row]
            windows = plain.decode_windows(contents, lambda h, w: plain.center_window(pre, h, w), pre.input == "flow")
            yield plain.resize(windows, pre.crop_size, pre.antialias)


def error_maps(
    model: VideoNetwork | HasNetwork, result: EvalResult, index: VideoIndex, cfg: Config
) -> Callable[[int, int], str]:
    """A function (row of `index`, row of `result`) -> HTML: frames of one clip, and what speaks for the error.

    The clip is the one in which the predicted class has the highest probability, or the one in the middle where that is
    not known. A video that cannot be read gives "".
    """
    pre = config.preprocessing(cfg.data)
    explainer = Explainer(model, pre, batch_size=1)
    strides = video_strides(index, cfg.data)
    large = overlay.enlarged(pre)

    def draw(row: int, video: int) -> str:
        source = IndexedVideo(index, row, pre, float(strides[row]))
        starts = np.array([_start(result, video, source)])
        try:
            found = explainer(source.clips(starts), int(result.predictions[video]))
            seen = overlay.moments(found.maps, starts, source.count(), pre, source.stride)
            rows = overlay.chosen_moments(seen)
            pairs = list(overlay.overlaid(dataclasses.replace(source, pre=large).clips(starts), found.maps, seen, pre))
        except (OSError, plain.PictureError):
            return ""
        picture = overlay.picture_of([pairs[k] for k in rows.tolist()], seen, rows)
        size = _WIDTH, round(picture.shape[0] * _WIDTH / picture.shape[1])
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
        text = f"Grad-CAM of {result.class_names[found.target]} in a clip from frame {starts[0]}"
        return f'<div class="muted small">{escape(text)}</div>{image(jpeg, "image/jpeg", text)}'

    return draw


def _start(result: EvalResult, video: int, source: IndexedVideo) -> int:
    if result.timeline is not None:
        rows = result.timeline[result.timeline[:, 0] == video]
        if len(rows):
            return int(rows[rows[:, 3].argmax(), 1])
    return max(source.count() - int(clip_steps(source.pre.read_frames, source.stride)[-1]), 0) // 2
