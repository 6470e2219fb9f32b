"""The result of an evaluation: kept per video, written to disk, and printed."""

import collections
import dataclasses
import functools
import io
import json
import os
import platform
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from r23d_jax.config import Config, UserError
from r23d_jax.evaluation import metrics as metric_functions
from r23d_jax.runtime.disk import write_atomically
from r23d_jax.version import __version__

NPZ, JSON = "evaluation.npz", "evaluation.json"
EVALUATIONS = "evaluations"  # folder of a run, beside the evaluation and the report of the training itself
# Title and name of each metric of `metrics.video_metrics`; "_softmax" is appended for averaged probabilities.
VIDEO_METRICS = (("video top-1", "val/top1_video"), ("video top-5", "val/top5_video"), ("mean class", "val/mean_class"))


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How an accuracy was measured; an accuracy means nothing without it."""

    split: int
    views: str
    num_clips: int  # per video; for views="uniform"
    crops: int
    input: str
    num_frames: int
    frame_stride: int
    short_side: int
    crop_size: int
    frame_seconds: float = 0.0  # from a frame of a clip to the next; 0: frame_stride frames
    fold: int = 0  # of the training list, whose groups were held out and evaluated; 0: the test list
    chosen: str = ""  # how the checkpoint was chosen; "": it is the last one
    other_data: str = ""  # names of the folders of data and lists, if they are others than in training
    trained_on: int = 0  # how many of the videos the network was trained on

    @classmethod
    def of(cls, cfg: Config) -> "Protocol":
        """The protocol that a config asks for, with the last checkpoint."""
        values: dict[str, Any] = vars(cfg.data) | vars(cfg.eval) | {"chosen": "", "other_data": "", "trained_on": 0}
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})

    @property
    def folder(self) -> str:
        """Name of the folder that keeps such evaluations, e.g. `split1-uniform10-3crops`."""
        clips = f"{self.views}{self.num_clips}" if self.views == "uniform" else self.views
        fold, best = f"-fold{self.fold}" if self.fold else "", "-best" if self.chosen else ""
        data = "-" + re.sub(r"[^\w.+-]+", "-", self.other_data) if self.other_data else ""
        return f"split{self.split}{fold}-{clips}-{self.crops}crop{'s' if self.crops > 1 else ''}{best}{data}"

    def describe(self) -> str:
        """One line, e.g. `all non-overlapping clips of 16 frames x 1 crop of 112x112 (short side 136)`."""
        names = {"rgb": "frames", "rgb_diff": "frame differences", "rgb_and_diff": "frames and their differences"}
        frames = names.get(self.input, f"{self.input} frames")
        clips = "all non-overlapping clips" if self.views == "dense" else f"{_count(self.num_clips, 'uniform clip')}"
        stride = f", stride {self.frame_stride}" if self.frame_stride > 1 else ""
        stride = f", one every {self.frame_seconds:g} s," if self.frame_seconds else stride
        return (
            f"{clips} of {self.num_frames} {frames}{stride} x {_count(self.crops, 'crop')} of "
            f"{self.crop_size}x{self.crop_size} (short side {self.short_side})"
        )


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Scores of every video, and the accuracies computed from them.

    N videos, C classes. A video with no readable view has `num_views` 0 and counts in no metric.
    """

    # `val/top1_clip`, `val/loss` (mean cross-entropy) and the result of `metrics.video_metrics`, as fractions. The
    # first two count every view once.
    metrics: dict[str, float]
    class_names: tuple[str, ...]  # C names
    names: np.ndarray  # (N,) str, names of the videos
    labels: np.ndarray  # (N,) int32
    logits: np.ndarray  # (N, C) float64, summed over views
    softmax: np.ndarray  # (N, C) float64, probabilities summed over views
    num_views: np.ndarray  # (N,) int32, views that were scored
    broken_views: int  # number of unreadable views, over all videos
    broken: tuple[tuple[str, str], ...]  # (file or video, reason) of everything unreadable
    missing: tuple[str, ...]  # listed videos that were not found on disk
    protocol: Protocol  # how the views were chosen
    # versions and devices, see `environment`; "checkpoint" if `evaluate_checkpoint` made it
    environment: dict[str, str]
    # (K, 4) float32, a row per clip that was scored: row of the video, first frame of the clip, and the probabilities
    # of the true class and of the video's predicted class, averaged over crops. None if not kept.
    timeline: np.ndarray | None = None

    @functools.cached_property
    def evaluated(self) -> np.ndarray:
        """(N,) bool: videos with at least one scored view."""
        return self.num_views > 0

    @property
    def not_evaluated(self) -> tuple[str, ...]:
        """Names of the videos without a readable view."""
        return tuple(self.names[~self.evaluated].tolist())

    @functools.cached_property
    def predictions(self) -> np.ndarray:
        """(N,) int: class with the highest averaged logit; meaningless where `evaluated` is False."""
        return self.logits.argmax(axis=1)

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """(N, C) float64: probabilities averaged over views; zeros where `evaluated` is False."""
        return self.softmax / np.maximum(self.num_views, 1)[:, None]

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """(C, C) int64 from averaged logits: row is the true class, column the predicted one."""
        return self._confusion(self.predictions)

    @functools.cached_property
    def confusion_softmax(self) -> np.ndarray:
        """(C, C) int64: the same from averaged probabilities."""
        return self._confusion(self.softmax.argmax(axis=1))

    @functools.cached_property
    def per_class(self) -> np.ndarray:
        """(C,) float64 accuracy of each class from averaged logits; nan for a class without evaluated videos."""
        return metric_functions.per_class_accuracy(self.confusion)

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Classes without evaluated videos, which the mean class accuracy leaves out."""
        return tuple(name for name, value in zip(self.class_names, self.per_class, strict=True) if np.isnan(value))

    def described(self) -> dict[str, Any]:
        """All but the scores of the videos, as JSON values."""
        return {
            "metrics": {name: _finite(value) for name, value in self.metrics.items()},
            "protocol": dataclasses.asdict(self.protocol),
            "videos": len(self.names),
            "views": int(self.num_views.sum()),
            "broken_views": self.broken_views,
            "class_names": list(self.class_names),
            "per_class": [_finite(value) for value in self.per_class.tolist()],
            "classes_without_videos": list(self.empty_classes),
            "not_evaluated": list(self.not_evaluated),
            "missing": list(self.missing),
            "broken": [list(pair) for pair in self.broken],
            "environment": self.environment,
        }

    def _confusion(self, predictions: np.ndarray) -> np.ndarray:
        seen = self.evaluated
        return metric_functions.confusion_matrix(self.labels[seen], predictions[seen], len(self.class_names))


def environment() -> dict[str, str]:
    """Versions and devices that a result was computed with; names neither the machine nor its user."""
    import flax
    import jax

    kinds = collections.Counter(device.device_kind for device in jax.devices())
    return {
        "r23d_jax": __version__,
        "Python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
        "devices": ", ".join(f"{count} x {kind}" for kind, count in kinds.items()),
        "processes": str(jax.process_count()),
        "CPU cores": str(os.cpu_count()),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def checkpoint_at(step: int) -> str:
    """What `environment` keeps of the checkpoint that was scored."""
    return f"step {step}"


# -- on disk -----------------------------------------------------------------------------------------------------------

_ARRAYS = ("names", "labels", "logits", "softmax", "num_views")


def save_evaluation(result: EvalResult, folder: Path) -> None:
    """Writes `evaluation.npz`, which holds everything, and `evaluation.json`, the part that people read.

    Each file appears complete or not at all.
    """
    meta = result.described()
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    arrays = {name: getattr(result, name) for name in (*_ARRAYS, "confusion", "confusion_softmax")}
    arrays |= {} if result.timeline is None else {"timeline": result.timeline}
    np.savez_compressed(buffer, meta=np.array(json.dumps(meta)), **arrays)
    write_atomically(folder / NPZ, buffer.getvalue())
    write_atomically(folder / JSON, json.dumps(meta, indent=2) + "\n")


def load_evaluation(folder: Path) -> EvalResult | None:
    """The evaluation in a folder, or None if there is none; raises UserError, naming the file, if it cannot be read."""
    path = folder / NPZ
    if not path.exists():
        return None
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
            timeline = file["timeline"] if "timeline" in file else None
            meta = json.loads(str(file["meta"]))
        return EvalResult(
            metrics={name: float("nan") if value is None else value for name, value in meta["metrics"].items()},
            class_names=tuple(meta["class_names"]),
            broken_views=meta["broken_views"],
            broken=tuple((name, reason) for name, reason in meta["broken"]),
            missing=tuple(meta["missing"]),
            protocol=Protocol(**meta["protocol"]),
            environment=meta["environment"],
            timeline=timeline,
            **arrays,
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}"
        if "pickle" in reason:  # numpy's message explains how to run the code anyway
            reason = "refused, because reading it could run code stored in it"
        raise UserError(f"{path}: cannot be read ({reason}). Delete it and evaluate again with --mode=eval.") from error


def _finite(value: float) -> float | None:
    """JSON has no nan."""
    return float(value) if np.isfinite(value) else None


# -- in print ----------------------------------------------------------------------------------------------------------


def protocol_line(result: EvalResult) -> str:
    """The split, the videos, the views, how they are averaged, and how the checkpoint was chosen, in one sentence."""
    protocol = result.protocol
    fold = f"held-out groups of the training list (fold {protocol.fold}), " if protocol.fold else ""
    chosen = f"; the checkpoint is the {protocol.chosen}" if protocol.chosen else ""
    data = f"other data than in training ({protocol.other_data}), " if protocol.other_data else ""
    seen = f" ({protocol.trained_on:,} of them trained on)" if protocol.trained_on else ""
    return (
        f"{data}split {protocol.split}, {fold}{_count(int(result.evaluated.sum()), 'video')}{seen}, "
        f"{_count(int(result.num_views.sum()), 'view')}: {protocol.describe()}; "
        f"the scores of a video are the mean over its views{chosen}"
    )


def remarks(result: EvalResult) -> list[str]:
    """Caveats for a reader of the accuracies: videos and classes that they leave out."""
    lines = []
    if result.not_evaluated:
        lines.append(f"not evaluated, every view broken: {_listed(result.not_evaluated, 'video')}")
    if result.broken_views:
        lines.append(f"left out: {_count(result.broken_views, 'view')} that could not be read")
    if result.missing:
        lines.append(f"listed, but not found on disk: {_listed(result.missing, 'video')}")
    if result.empty_classes:
        lines.append(f"not in the mean class accuracy, without videos: {_listed(result.empty_classes, 'class')}")
    if len(result.class_names) <= metric_functions.TOP_K:
        lines.append(f"top-5 means nothing here: there are only {_count(len(result.class_names), 'class')}")
    return lines


def format_table(result: EvalResult) -> str:
    """The table printed at the end of a run: accuracies under both averagings, the protocol, and remarks."""
    rows: list[tuple[str, ...]] = [("averaged:", "logits", "softmax")]
    for title, name in VIDEO_METRICS:
        logits, softmax = (percent(result.metrics.get(name + suffix)) for suffix in ("", "_softmax"))
        rows.append((title, logits, softmax))
    rows.append(("clip top-1", percent(result.metrics.get("val/top1_clip")), ""))
    width = max(len(row[0]) for row in rows)
    lines = [f"  {title:<{width}}  {logits:>8}  {softmax:>8}".rstrip() for title, logits, softmax in rows]
    return "\n".join(["evaluation", *lines, f"  {protocol_line(result)}", *(f"  {text}" for text in remarks(result))])


def percent(value: Any) -> str:
    """`56.61 %`; a dash where there is no value."""
    return "-" if value is None or not np.isfinite(value) else f"{100 * value:.2f} %"


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def _listed(names: tuple[str, ...], noun: str, most: int = 5) -> str:
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{_count(len(names), noun)} ({shown})"
