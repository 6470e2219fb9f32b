"""Evaluates a trained network on the videos that a config names, and writes a report."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax

from r23d_jax import config
from r23d_jax.checkpoint.checkpoint import LoadedModel, load_checkpoint
from r23d_jax.config import RATE_TOLERANCE, Config
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.find.trained_videos import together, were_among
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.data.sources import names_of, open_index, trained_preprocessing
from r23d_jax.evaluation import browser, nearest, report
from r23d_jax.evaluation.evaluate import evaluate
from r23d_jax.evaluation.result import EVALUATIONS, EvalResult, checkpoint_at, format_table, save_evaluation
from r23d_jax.evaluation.step import make_eval_step
from r23d_jax.models.functional import split_model
from r23d_jax.runtime import compilation_cache, disk, parallel
from r23d_jax.runtime.program import command


def evaluate_checkpoint(cfg: Config, workdir: Path, log: Callable[[str], None] = print) -> EvalResult:
    """Evaluates a checkpoint of `workdir`, the last one by default, on the videos and views that `cfg` asks for.

    The network and its preprocessing are those of the checkpoint, whatever `cfg` has. Scores and a report are written
    to `workdir/evaluations/<split and views>`, so that the files of the training stay as they are.

    Raises:
      config.UserError: if there is no checkpoint, or its classes are not those of the videos.
    """
    config.validate(cfg)
    log, log_own = parallel.loggers(log)
    if cfg.compilation_cache:
        compilation_cache.keep_compiled(workdir / "compilation_cache")
    log(parallel.describe_devices())
    loaded = load_checkpoint(workdir, cfg.eval.checkpoint)
    log(f"checkpoint: {loaded.path}, {loaded.chosen}: {loaded.name}, {loaded.config.model.head.kind} head")
    data = config.with_preprocessing(cfg.data, loaded.preprocessing)
    for name, value in vars(data).items():
        if getattr(cfg.data, name) != value:
            log(f"config.data.{name} is {value!r}, as in training")
    trained = loaded.config  # what this command's config says of a training is not about this network
    here = dataclasses.replace(trained.parallel, fsdp=cfg.parallel.fsdp)  # the devices are this command's
    cfg = dataclasses.replace(trained, data=data, eval=cfg.eval, fusion=cfg.fusion, parallel=here)
    result, index = score_checkpoint(loaded, cfg, "test", log, BrokenLog(cfg.data, log=log_own))
    environment = result.environment | {"checkpoint": checkpoint_at(loaded.step)}
    result = dataclasses.replace(result, environment=environment)
    neighbors = None
    if cfg.eval.nearest:
        errors = browser.confident_errors(result)[: browser.MOST_LISTED]
        train = open_videos(cfg, "train", log)
        neighbors = nearest.find_neighbors(loaded.model, train, index, errors, cfg, log)
    if jax.process_index() == 0:
        log(format_table(result))
        folder = workdir / EVALUATIONS / result.protocol.folder
        try:
            with disk.writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            with disk.hold(folder, log=log):
                save_evaluation(result, folder)
                log(f"report: {report.write_report(workdir, index, cfg, folder, loaded, neighbors)}")
        except (disk.InUse, disk.WriteError) as error:
            log(f"this evaluation is not kept: {error}")
    return result


def score_checkpoint(
    loaded: LoadedModel,
    cfg: Config,
    subset: Literal["test", "held_out"],
    log: Callable[[str], None],
    broken: BrokenLog | None = None,
) -> tuple[EvalResult, VideoIndex]:
    """Evaluates a trained network on a subset of the videos that `cfg` names; returns the result and the videos.

    Raises:
      config.UserError: if its classes are not those of the videos, or it was trained on the fold.
    """
    _refuse_trained_fold(loaded, cfg)
    index = open_videos(cfg, subset, log)
    if index.class_names != loaded.class_names:
        raise config.UserError(
            f"{loaded.path}: was trained on {len(loaded.class_names)} classes ({_short(loaded.class_names)}) and the "
            f"lists have {len(index.class_names)} ({_short(index.class_names)}): set config.data.lists and "
            "config.data.classes as in training"
        )
    seen = int(were_among(together(loaded.videos, loaded.init_videos), index).sum())
    if seen:
        log(f"by their names, it was trained on {seen:,} of these {len(index):,} videos: this says little about others")
    _log_differences(loaded, cfg, index, seen > 0, log)
    mesh = parallel.make_mesh(cfg.parallel.fsdp)
    network, params, batch_stats = split_model(loaded.model)
    eval_step = make_eval_step(network, loaded.preprocessing, mesh)
    result = evaluate(eval_step, params, batch_stats, index, cfg, mesh, broken=broken, log=log)
    assert result is not None, "nothing asked this evaluation to stop"
    if cfg.eval.checkpoint == "best":
        trained = loaded.config.data
        where = "held-out groups" if trained.fold or trained.motion.speeds else "test videos"
        protocol = dataclasses.replace(result.protocol, chosen=f"best on the {where}")
        result = dataclasses.replace(result, protocol=protocol)
    if names_of(loaded.config.data) != names_of(cfg.data):
        protocol = dataclasses.replace(result.protocol, other_data=names_of(cfg.data))
        result = dataclasses.replace(result, protocol=protocol)
    result = dataclasses.replace(result, protocol=dataclasses.replace(result.protocol, trained_on=seen))
    return result, index


def open_videos(cfg: Config, subset: Literal["train", "test", "held_out"], log: Callable[[str], None]) -> VideoIndex:
    """Finds the videos of a subset, and logs how many there are and everything notable about them.

    Raises:
      UserError: there are none; or the processes of a job have different ones.
    """
    index = _same_everywhere(lambda: open_index(cfg.data, subset), subset)
    classes = len(index.class_names)
    title = f"fold {cfg.data.fold}, held out" if subset == "test" and cfg.data.fold else subset
    log(f"{title}: {len(index.names):,} videos of {classes} classes, split {cfg.data.split} ({index.layout})")
    for note in index.notes:
        log(f"{subset}: {note}")
    if index.missing:
        shown = _short(index.missing)
        log(f"{subset}: {len(index.missing):,} listed videos have no frames under {cfg.data.root}: {shown}")
    return index


def _same_everywhere(find: Callable[[], VideoIndex], subset: str) -> VideoIndex:
    """The videos, after all processes of a job have found the same; an error of one of them ends all."""
    if jax.process_count() == 1:
        return find()
    index, error, told = None, None, ""
    try:
        index = find()
        digest = hashlib.sha256("\n".join(index.names.tolist()).encode(errors="surrogatepass"))
        digest.update(index.labels.tobytes() + index.num_frames.tobytes())
        told = f"{len(index):,} {digest.hexdigest()}"
    except config.UserError as found:
        error = found
    answers = parallel.from_processes([told, str(error or "")])
    if error:
        raise error
    assert index is not None, "there is no error"
    for number, (other, problem) in enumerate(answers):
        if problem:
            raise config.UserError(f"process {number} of the job: {problem}")
        if other != told:
            mine, theirs = told.partition(" ")[0], other.partition(" ")[0]
            raise config.UserError(
                f"the processes of this job have different {subset} videos: {mine} in process {jax.process_index()}, "
                f"{theirs} in process {number}, or others, or with other frames. All need the same data and lists"
            )
    return index


def _refuse_trained_fold(loaded: LoadedModel, cfg: Config) -> None:
    """Refuses a fold that the training did not hold out."""
    asked, trained = ((data.fold, data.split) for data in (cfg.data, loaded.config.data))
    if cfg.data.fold and asked != trained:
        raise config.UserError(
            f"config.data.fold={asked[0]} of split {asked[1]}: {loaded.path} was trained with fold {trained[0]} of "
            f"split {trained[1]}, so on videos of this fold; evaluate it on the test videos with config.data.fold=0"
        )


def _log_differences(
    loaded: LoadedModel, cfg: Config, index: VideoIndex, seen: bool, log: Callable[[str], None]
) -> None:
    """Logs that the split is another than in training, flow was made in another way, or clips have another pace."""
    splits = loaded.config.data.split, cfg.data.split
    if splits[0] != splits[1] and not seen:  # which has been said
        log(f"trained on split {splits[0]}, which may have test videos of split {splits[1]} among its training videos")
    trained, here = loaded.preprocessing, trained_preprocessing(cfg.data, index)
    if trained.flow.method and here.flow != trained.flow:
        log(f"trained on {trained.flow}, and evaluated on {here.flow}: expect another accuracy")
    sizes = trained.reduced_to, here.reduced_to
    if min(sizes) and sizes[0] != sizes[1]:
        log(
            f"trained on frames of short side {sizes[0]}, and evaluated on {sizes[1]} (prepare --short-side): expect "
            "another accuracy"
        )
    rates = trained.frame_rate, here.frame_rate
    if not cfg.data.frame_seconds and min(rates) and abs(rates[1] / rates[0] - 1) > RATE_TOLERANCE:
        log(
            f"trained on videos of {rates[0]:g} frames a second, and evaluated on {rates[1]:g}, at the same stride; "
            f"{command('predict')} adapts the stride, and so does a training with config.data.frame_seconds"
        )


def _short(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
