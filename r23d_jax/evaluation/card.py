"""The model card of a trained network, written from what its run has measured."""

import dataclasses
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r23d_jax.checkpoint.checkpoint import FOLDER, LoadedModel
from r23d_jax.config import Config, kinds_of
from r23d_jax.data.find.video_names import group_of
from r23d_jax.data.read.views import predicted_from
from r23d_jax.evaluation.bootstrap import interval
from r23d_jax.evaluation.figures import confused_pairs
from r23d_jax.evaluation.metrics import TOP_K, true_ranks
from r23d_jax.evaluation.result import (
    EVALUATIONS,
    VIDEO_METRICS,
    EvalResult,
    Protocol,
    checkpoint_at,
    load_evaluation,
    percent,
    protocol_line,
    remarks,
)
from r23d_jax.runtime.progress import markdown
from r23d_jax.weights.pretrained import PRETRAINED, pretrained_name
from r23d_jax.weights.saved import import_hub
from r23d_jax.weights.state_dicts import count_parameters

WORST = 5  # confusions to show
# Fields that name places on this machine
_PATHS = (
    "data.root",
    "data.lists",
    "init_from",
    *(f"fusion.{n}{r}" for n in ("first", "second") for r in ("", "_root")),
)
_Z = 1.959964  # of a normal distribution, for 95 %


def model_card(model: LoadedModel) -> str:
    """The text of README.md, with the metadata that the Hub reads.

    Only evaluations of this checkpoint are in it: that of its training, and those of the command `evaluate`. Paths are
    shortened to their last part.

    Raises:
      HubError: if huggingface_hub is missing.
    """
    hub, results = import_hub(), evaluations(model)
    published = PRETRAINED.get(pretrained_name(model.path) or "")
    figures = [
        hub.EvalResult(
            task_type="video-classification",
            dataset_type=_dataset(model.config),
            dataset_name=_dataset(model.config),
            dataset_split=_split(result.protocol),
            metric_type="accuracy",
            metric_name=f"{title}, {result.protocol.describe()}",
            metric_value=round(result.metrics[name], 4),
        )
        for result in results
        for title, name in VIDEO_METRICS
        if np.isfinite(result.metrics[name])
    ]
    data = hub.ModelCardData(
        library_name="r23d_jax",
        pipeline_tag="video-classification",
        license=published.license.lower() if published else None,
        tags=["action-recognition", "jax", "flax", model.name],
        model_name=model.name,
        eval_results=figures or None,
    )
    trained_here = model.step > 0  # else its config has a network and nothing else
    lines = [*_network(model), *(_published(model) if published else _run(model) if trained_here else [])]
    for result in results:
        lines += _figures(result)
    if not results:
        lines += ["## Results", "", "No figures that were measured with this code are kept with these weights.", ""]
    return str(hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)))


def evaluations(model: LoadedModel) -> list[EvalResult]:
    """The evaluations that a run has kept of this checkpoint, the training's first."""
    if model.path.parent.name != FOLDER:
        return []
    workdir = model.path.parent.parent
    own = load_evaluation(workdir)
    # An evaluation of the training names no step, but the checkpoint has its metrics
    found = [own] if own is not None and _finite(own.metrics) == _finite(model.metrics) else []
    for folder in sorted((workdir / EVALUATIONS).glob("*")):
        result = load_evaluation(folder)
        if result is None or result.protocol.other_data:
            continue
        if result.environment.get("checkpoint") == checkpoint_at(model.step):
            found.append(result)
    return found


def _split(protocol: Protocol) -> str:
    if protocol.fold:
        return f"held-out groups of train {protocol.split}, fold {protocol.fold}"
    return f"test {protocol.split}"


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of independent trials (Wilson 1927, JASA 22); as fractions."""
    spread = _Z * math.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2)
    middle, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _network(model: LoadedModel) -> list[str]:
    pre, kind = model.preprocessing, model.config.model.head.kind
    pace = f"one every {pre.frame_seconds:g} s" if pre.frame_seconds else f"stride {pre.frame_stride}"
    names = ", ".join(map(markdown, model.class_names[:10])) + (", ..." if len(model.class_names) > 10 else "")
    views = predicted_from(model.config.eval)
    clips = f"{views.num_clips} evenly spaced" if views.views == "uniform" else "all non-overlapping"
    return [
        f"# {model.name}",
        "",
        f"A network for video classification in JAX/Flax: {model.name} with the head `{kind}`, "
        f"{count_parameters(model.model):,} parameters, {len(model.class_names)} classes ({names}).",
        "",
        "```python",
        "import r23d_jax",
        "",
        'model = r23d_jax.from_pretrained("OWNER/NAME")  # or the folder of this file',
        'model.predict("video.mp4")  # {class name: probability}',
        "```",
        "",
        f"Its input is `{pre.input}`: clips of {pre.num_frames} frames, {pace}, of {pre.crop_size} x {pre.crop_size} "
        f"pixels from frames of short side {pre.short_side}. `predict` prepares videos this way, and averages the "
        f"probabilities of {clips} clips of a video, cropped in the center.",
        "",
    ]


def _published(model: LoadedModel) -> list[str]:
    name = str(pretrained_name(model.path))
    row = PRETRAINED[name]
    stated = f"{row.accuracy[0]:g} % top-1 and {row.accuracy[1]:g} % top-5 ({row.protocol})" if row.accuracy else ""
    return [
        f"The weights are `{name}`, converted from {row.files[0].url}. They were trained on {row.data}. "
        + (f"Their publisher states {stated}, which was not measured with this code." if stated else ""),
        "",
    ]


def _run(model: LoadedModel) -> list[str]:
    cfg = model.config
    start = f"the weights `{Path(cfg.init_from).name}`" if cfg.init_from else "random weights"
    epochs = "epoch" if cfg.train.epochs == 1 else "epochs"
    return [
        "## Training",
        "",
        f"Trained on `{_dataset(cfg)}`, split {cfg.data.split}, from {start}: {cfg.train.epochs:g} {epochs} with "
        f"`{cfg.optimizer.name}`, a learning rate of {cfg.optimizer.learning_rate:g} and {cfg.train.global_batch_size} "
        f"clips per step. These are the values of step {model.step:,}.",
        "",
        "This command repeats it. Paths are shortened to their last part.",
        "",
        "```bash",
        training_command(cfg),
        "```",
        "",
    ]


def training_command(cfg: Config) -> str:
    """The command that trains with a config: every field that differs from its default, paths without their folders."""
    flags = []
    for name, value, default in _fields(cfg, Config(), ""):
        if value != default:
            value = Path(value).name if name in _PATHS and value else value
            flags.append(shlex.quote(f"--config.{name}={value}"))
    return " \\\n  ".join(["r23d-jax train --config defaults", *flags])


def _fields(value: Any, default: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    for name in kinds_of(type(value)):
        one, other = getattr(value, name), getattr(default, name)
        if dataclasses.is_dataclass(one):
            yield from _fields(one, other, f"{place}{name}.")
        else:
            yield f"{place}{name}", one, other


def _dataset(cfg: Config) -> str:
    """What the data is called: its source, or the folder of its frames."""
    root = Path(cfg.data.root)
    generic = ("frames", "shards", "packed")
    return "synthetic" if cfg.data.source == "synthetic" else root.parent.name if root.name in generic else root.name


def _figures(result: EvalResult) -> list[str]:
    intervals, about = _intervals(result)
    lines = [f"## Results: {result.protocol.describe()}", "", f"{protocol_line(result).capitalize()}.", ""]
    lines += ["| | accuracy | 95 % interval |", "|---|---:|---:|"]
    for title, name in VIDEO_METRICS:
        low, high = intervals.get(name, (0.0, 0.0))
        shown = f"{100 * low:.1f} to {100 * high:.1f} %" if low < high else "-"
        lines.append(f"| {title} | {percent(result.metrics[name])} | {shown} |")
    lines += [
        "",
        f"{about} It does not cover the randomness of training. If this checkpoint was chosen as the best on these "
        "videos, as `load_model` does by default, the figures favor it.",
        "",
        *(f"- {markdown(remark)}" for remark in remarks(result)),
        *_confusions(result),
    ]
    versions = ", ".join(f"{name} {value}" for name, value in result.environment.items())
    return [*lines, "", f"Measured with: {versions}.", ""]


def _intervals(result: EvalResult) -> tuple[dict[str, tuple[float, float]], str]:
    """The 95 % interval of each metric that has one, as fractions; and what it is, in sentences."""
    rows = np.flatnonzero(result.evaluated)
    if not len(rows):
        return {}, "No video was evaluated, so there is no interval."
    labels, names = result.labels[rows], [str(result.names[row]) for row in rows]
    ranks = true_ranks(result.logits[rows], labels)
    right = {"val/top1_video": ranks < 1, "val/top5_video": ranks < TOP_K}
    found = [group_of(name) for name in names]
    _, classes = np.unique(labels, return_inverse=True)
    _, groups = np.unique([f"{label}/{group}" for label, group in zip(labels, found, strict=True)], return_inverse=True)
    if None in found or groups.max() == 0:
        return {name: wilson(float(hits.mean()), len(hits)) for name, hits in right.items()}, (
            "The interval (Wilson) treats videos as independent, because not all of their names tell a recording "
            "(`_g01_c01`). Clips of one recording are not independent, so it is too narrow for data that has them."
        )
    whole = np.zeros(len(rows), int)
    kinds = {name: (hits, whole) for name, hits in right.items()} | {"val/mean_class": (ranks < 1, classes)}
    drawn = {name: interval(hits.astype(np.float64), parts, groups) for name, (hits, parts) in kinds.items()}
    return {name: (one.low, one.high) for name, one in drawn.items()}, (
        f"The interval is a bootstrap over the {groups.max() + 1:,} recordings that the names of the {len(rows):,} "
        "videos tell (`_g01_c01`), because clips of one recording are not independent. Where all or none are right, it "
        "shows nothing."
    )


def _confusions(result: EvalResult) -> Sequence[str]:
    pairs = confused_pairs(result.confusion, WORST)
    if not pairs:
        return ["", "No video was classified wrongly."]
    names = result.class_names
    rows = [
        f"| {markdown(names[row])} | {markdown(names[column])} | {count} | {100 * share:.0f} % |"
        for row, column, count, share in pairs
    ]
    head = ["| class | taken for | videos | of the class |", "|---|---|---:|---:|"]
    return ["", f"The most frequent confusions, {len(pairs)} of them:", "", *head, *rows]
