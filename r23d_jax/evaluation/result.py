"""What an evaluation found: kept per video, written to the workdir, and printed."""

import dataclasses
import functools
import io
import json
import os
import platform
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from r23d_jax.config import Config, UserError
from r23d_jax.evaluation import metrics as metric_functions
from r23d_jax.runtime.disk import write_atomically
from r23d_jax.version import __version__

NPZ, JSON = "evaluation.npz", "evaluation.json"


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

    @classmethod
    def of(cls, cfg: Config) -> "Protocol":
        """The protocol that a config asks for."""
        d, e = cfg.data, cfg.eval
        return cls(
            split=d.split,
            views=e.views,
            num_clips=e.num_clips,
            crops=e.crops,
            input=d.input,
            num_frames=d.num_frames,
            frame_stride=d.frame_stride,
            short_side=d.short_side,
            crop_size=d.crop_size,
        )

    def describe(self) -> str:
        """One line, e.g. `all non-overlapping clips of 16 frames x 1 crop of 112x112 (short side 136)`."""
        frames = {"rgb": "frames", "rgb_diff": "frame differences"}.get(self.input, f"{self.input} frames")
        clips = "all non-overlapping clips" if self.views == "dense" else f"{_count(self.num_clips, 'uniform clip')}"
        stride = f", stride {self.frame_stride}" if self.frame_stride > 1 else ""
        return (
            f"{clips} of {self.num_frames} {frames}{stride} x {_count(self.crops, 'crop')} of "
            f"{self.crop_size}x{self.crop_size} (short side {self.short_side})"
        )


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Scores of every video and what follows from them.

    N videos, C classes. A video none of whose views could be read has `num_views` 0 and takes part in no metric.

    Attributes:
      metrics: `val/top1_clip`, `val/loss` (mean cross-entropy of a clip) and what `metrics.video_metrics` gives, as
        fractions. Of a clip here means of a view: every view counts once.
      class_names: C names.
      names: (N,) str, names of the videos.
      labels: (N,) int32.
      logits: (N, C) float64, summed over views.
      softmax: (N, C) float64, probabilities summed over views.
      num_views: (N,) int32, views that were scored.
      broken_views: views that could not be read, over all videos.
      broken: (file or video, reason) of what could not be read.
      missing: listed videos that were not found on disk.
      protocol: how the views were chosen.
      environment: versions and devices, see `environment`.
    """

    metrics: dict[str, float]
    class_names: tuple[str, ...]
    names: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    softmax: np.ndarray
    num_views: np.ndarray
    broken_views: int
    broken: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    protocol: Protocol
    environment: dict[str, str]

    @functools.cached_property
    def evaluated(self) -> np.ndarray:
        """(N,) bool: videos with at least one scored view."""
        return self.num_views > 0

    @property
    def not_evaluated(self) -> tuple[str, ...]:
        """Names of the videos none of whose views could be read."""
        return tuple(self.names[~self.evaluated].tolist())

    @functools.cached_property
    def predictions(self) -> np.ndarray:
        """(N,) int: class with the highest averaged logit; means nothing where `evaluated` is False."""
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
        """The same from averaged probabilities."""
        return self._confusion(self.softmax.argmax(axis=1))

    @functools.cached_property
    def per_class(self) -> np.ndarray:
        """(C,) float64 accuracy of each class from averaged logits; nan for a class without evaluated videos."""
        return metric_functions.per_class_accuracy(self.confusion)

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Classes without evaluated videos, which the mean class accuracy leaves out."""
        return tuple(name for name, value in zip(self.class_names, self.per_class, strict=True) if np.isnan(value))

    def _confusion(self, predictions: np.ndarray) -> np.ndarray:
        seen = self.evaluated
        return metric_functions.confusion_matrix(self.labels[seen], predictions[seen], len(self.class_names))


def environment() -> dict[str, str]:
    """Versions and devices that a result was computed with; nothing that names the machine or its user."""
    import flax
    import jax

    kinds: dict[str, int] = {}
    for device in jax.devices():
        kinds[device.device_kind] = kinds.get(device.device_kind, 0) + 1
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


# -- on disk -----------------------------------------------------------------------------------------------------------

_ARRAYS = ("names", "labels", "logits", "softmax", "num_views")


def save_evaluation(result: EvalResult, workdir: Path) -> None:
    """Writes `evaluation.npz`, which holds everything, and `evaluation.json`, the part of it that people read.

    Each file appears whole or not at all.
    """
    meta = {
        "metrics": {name: _finite(value) for name, value in result.metrics.items()},
        "protocol": dataclasses.asdict(result.protocol),
        "videos": len(result.names),
        "views": int(result.num_views.sum()),
        "broken_views": result.broken_views,
        "class_names": list(result.class_names),
        "per_class": [_finite(value) for value in result.per_class.tolist()],
        "classes_without_videos": list(result.empty_classes),
        "not_evaluated": list(result.not_evaluated),
        "missing": list(result.missing),
        "broken": [list(pair) for pair in result.broken],
        "environment": result.environment,
    }
    workdir.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    arrays = {name: getattr(result, name) for name in _ARRAYS}
    np.savez_compressed(
        buffer,
        meta=np.array(json.dumps(meta)),
        confusion=result.confusion,
        confusion_softmax=result.confusion_softmax,
        **arrays,
    )
    write_atomically(workdir / NPZ, buffer.getvalue())
    write_atomically(workdir / JSON, json.dumps(meta, indent=2) + "\n")


def load_evaluation(workdir: Path) -> EvalResult | None:
    """The newest evaluation in a workdir, or None if there is none.

    Raises:
      UserError: if the file cannot be read; the message names it.
    """
    path = workdir / NPZ
    if not path.exists():
        return None
    try:
        # opened here, because np.load leaves a damaged file open
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
            meta = json.loads(str(file["meta"]))
        return EvalResult(
            metrics={name: float("nan") if value is None else value for name, value in meta["metrics"].items()},
            class_names=tuple(meta["class_names"]),
            broken_views=meta["broken_views"],
            broken=tuple((name, reason) for name, reason in meta["broken"]),
            missing=tuple(meta["missing"]),
            protocol=Protocol(**meta["protocol"]),
            environment=meta["environment"],
            **arrays,
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}"
        if "pickle" in reason:  # numpy goes on to explain how to run the code all the same
            reason = "refused, because reading it could run code that is stored in it"
        raise UserError(f"{path}: cannot be read ({reason}). Delete it and evaluate again with --mode=eval.") from error


def _finite(value: float) -> float | None:
    """JSON has no nan."""
    return float(value) if np.isfinite(value) else None


# -- in print ----------------------------------------------------------------------------------------------------------


def protocol_line(result: EvalResult) -> str:
    """What was evaluated, in one sentence: split, videos, views and how they are averaged."""
    return (
        f"split {result.protocol.split}, {_count(int(result.evaluated.sum()), 'video')}, "
        f"{_count(int(result.num_views.sum()), 'view')}: {result.protocol.describe()}; "
        "the scores of a video are the mean over its views"
    )


def remarks(result: EvalResult) -> list[str]:
    """What a reader of the accuracies must know besides: videos and classes that are not in them."""
    lines = []
    if result.not_evaluated:
        lines.append(f"not evaluated, every view broken: {_listed(result.not_evaluated, 'video')}")
    if result.broken_views:
        lines.append(f"left out: {_count(result.broken_views, 'view')} that could not be read")
    if result.missing:
        lines.append(f"listed, but not found on disk: {_listed(result.missing, 'video')}")
    if result.empty_classes:
        lines.append(f"without videos, not in the mean class accuracy: {_listed(result.empty_classes, 'class')}")
    if len(result.class_names) <= metric_functions.TOP_K:
        lines.append(f"top-5 says nothing here: there are only {_count(len(result.class_names), 'class')}")
    return lines


def format_table(result: EvalResult) -> str:
    """The table printed at the end of a run: accuracies under both averagings, the protocol, and remarks."""
    rows = [("averaged:", "logits", "softmax")]
    for title, name in (("video top-1", "top1_video"), ("video top-5", "top5_video"), ("mean class", "mean_class")):
        by_logits, by_softmax = (percent(result.metrics.get(f"val/{name}{suffix}")) for suffix in ("", "_softmax"))
        rows.append((title, by_logits, by_softmax))
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
