"""What a network says about a video, with the names of its classes."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from r23d_jax.config import UserError
from r23d_jax.data.find.video_names import named_video
from r23d_jax.evaluation.single import Prediction, only_long
from r23d_jax.evaluation.timeline import TimelineOptions
from r23d_jax.evaluation.trained import TrainedModel


class Segment(NamedTuple):
    """A part of a video: from `start` to `end`, in seconds from the first frame; `top` has the best classes first."""

    start: float
    end: float
    class_name: str
    score: float
    top: list[tuple[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What a network says about a video."""

    class_names: tuple[str, ...]  # of the scores, in order
    prediction: Prediction  # the scores, and how they came about

    @property
    def scores(self) -> np.ndarray:
        """(C,) float64 probabilities of the classes for the whole video."""
        return self.prediction.probabilities

    @property
    def segments(self) -> list[Segment]:
        """The timeline, in order. There is a gap where no class scores enough, and nothing without a timeline."""
        timeline = self.prediction.timeline
        return [
            Segment(
                found.start,
                found.end,
                self.class_names[found.label],
                float(found.scores[found.label]),
                ranked(self.class_names, found.scores, len(self.class_names)),
            )
            for found in (timeline.segments if timeline is not None else ())
        ]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The best classes of the whole video with their probabilities, the best first."""
        return ranked(self.class_names, self.scores, count)


def ranked(class_names: tuple[str, ...], scores: np.ndarray, count: int) -> list[tuple[str, float]]:
    """The best classes by their (C,) scores, the best first."""
    order = np.argsort(-scores, kind="stable")[:count].tolist()
    return [(class_names[k], float(scores[k])) for k in order]


def predict(
    model: TrainedModel,
    video: Path | str | np.ndarray,
    *,
    rate: float = 0.0,
    timeline: bool | None = None,
    every: float = 0.0,
    smooth: float = 0.0,
    min_score: float = TimelineOptions.min_score,
) -> Answer:
    """Classifies a video, and says what happens when in a long one, as the command `predict` does.

    Args:
      model: from `load_model`.
      video: a video file, a folder of numbered frames, an address (http:// or https://), or frames (T, H, W, 3) uint8
        RGB of any number and size.
      rate: of an array, in frames per second; 0 if not known.
      timeline: whether to make one; None: for videos of more than a minute.
      every: seconds from one clip of the timeline to the next; 0: half a clip.
      smooth: seconds over which scores are averaged; 0: two clips.
      min_score: least score of a segment's class, in [0, 1].

    Raises:
      VideoError: if the video cannot be read.
      UserError: if `model` is something else, or an option is out of its range.
    """
    if not isinstance(model, TrainedModel):
        raise UserError(f"predict: the model is a {type(model).__name__}; give the result of r23d_jax.load_model")
    options = TimelineOptions(every, smooth, min_score)
    choose = only_long(options) if timeline is None else lambda seconds: options if timeline else None
    prediction = model.predictor.one(named_video(video) if isinstance(video, str) else video, choose, rate)
    return Answer(model.class_names, prediction)
