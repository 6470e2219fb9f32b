"""A whole training run, which can be stopped at any step and resumed."""

import collections
import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh

from r23d_jax import config, models
from r23d_jax.checkpoint.checkpoint import Checkpoints, create_configured_model
from r23d_jax.checkpoint.state import TrainState, create_state
from r23d_jax.checkpoint.store import BEST_METRIC
from r23d_jax.config import Config
from r23d_jax.data.find import trained_videos
from r23d_jax.data.find.directions import refuse_mirrored_views
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.data.read.pipeline import train_batches
from r23d_jax.data.sources import trained_preprocessing
from r23d_jax.evaluation import report
from r23d_jax.evaluation.evaluate import evaluate
from r23d_jax.evaluation.result import EvalResult, format_table, load_evaluation, save_evaluation
from r23d_jax.evaluation.run import open_videos
from r23d_jax.evaluation.step import EvalStep, make_eval_step
from r23d_jax.models.functional import Network, split_model, values
from r23d_jax.runtime import compilation_cache, disk, distributed, parallel, tracking
from r23d_jax.runtime.heartbeat import Heartbeat
from r23d_jax.runtime.journal import Journal
from r23d_jax.runtime.progress import Progress, announced, format_seconds
from r23d_jax.training import optimizer, resume
from r23d_jax.training.interrupt import StopRequest
from r23d_jax.training.meter import Meter, Profile
from r23d_jax.training.step import make_train_step
from r23d_jax.training.warm_start import check_source, warm_start
from r23d_jax.version import __version__

COMPILING = "compiling the training step, which may take a minute or more the first time"
STEPS_TO_TIME = 3  # on a CPU, before the time of the whole run is estimated; the first is not counted
LONG_SECONDS = 3 * 3600.0  # a CPU run that takes longer is warned of


def evaluation_is_due(step: int, steps_per_epoch: float, every: float) -> bool:
    """Whether this step is the first past a multiple of `every` epochs."""
    before, now = (math.floor(done / steps_per_epoch / every + optimizer.ROUNDING) for done in (step - 1, step))
    return step > 0 and now > before


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that stays the same from the first step to the last."""

    cfg: Config
    workdir: Path
    mesh: Mesh
    train_index: VideoIndex
    test_index: VideoIndex
    train_step: Callable[[TrainState, dict], tuple[TrainState, dict]]
    eval_step: EvalStep
    network: Network
    num_steps: int
    steps_per_epoch: float
    videos: str  # that the network has been trained on, for its checkpoints
    init_videos: str  # those of the weights that it started from
    trained_on: int  # how many of `test_index` are among the latter
    broken: BrokenLog
    checkpoints: Checkpoints
    journal: Journal
    heartbeat: Heartbeat
    stop: StopRequest
    log: Callable[[str], None]

    def epoch(self, step: int) -> float:
        """Epochs completed after `step` steps."""
        return step / self.steps_per_epoch

    def is_eval_step(self, step: int) -> bool:
        """Whether an evaluation follows this step: the first past every `eval_every` epochs, and the last."""
        return step == self.num_steps or evaluation_is_due(step, self.steps_per_epoch, self.cfg.train.eval_every)


def train(cfg: Config, workdir: Path, log: Callable[[str], None] = print, *, common: bool = True) -> EvalResult | None:
    """Trains to the last step, from the newest checkpoint in `workdir` if there is one.

    Args:
      cfg: a config; validated here.
      workdir: the folder of everything the run writes (see ARCHITECTURE.md).
      common: whether all processes of a job see this folder. Else process 0 alone has what the run wrote before, and
        writes checkpoints and results.

    Returns:
      The final evaluation; None if SIGTERM or SIGINT stopped the run early, after its state was saved.

    Raises:
      config.UserError: for every mistake that the user can correct; the message says how.
    """
    config.validate(cfg)
    if cfg.compilation_cache and common:  # jax lets process 0 alone write it
        compilation_cache.keep_compiled(workdir / "compilation_cache")
    log, log_own = parallel.loggers(log)
    with StopRequest(log_own) as stop, contextlib.ExitStack() as held:
        run, state = _set_up(cfg, workdir, common, stop, log, log_own, held)
        try:
            return _train(run, state)
        except Exception as error:
            run.heartbeat.fail(error)
            if common:
                distributed.leave_lost_job(error)  # closing would wait for the other processes
            raise


def _set_up(
    cfg: Config,
    workdir: Path,
    common: bool,
    stop: StopRequest,
    log: Callable[[str], None],
    log_own: Callable[[str], None],
    held: contextlib.ExitStack,
) -> tuple[Run, TrainState]:
    log(parallel.describe_devices())
    name = models.model_name(cfg.model)  # unknown names are refused before any data is read
    optimizer.check_names(cfg.optimizer)
    tracking.import_packages(cfg.logging)
    is_first = jax.process_index() == 0
    if common or is_first:
        check_source(cfg, workdir)
    train_index, test_index = open_videos(cfg, "train", log), open_videos(cfg, "test", log)
    refuse_mirrored_views(cfg.eval.crops, cfg.data.flip, test_index.class_names)
    if cfg.data.sampling == "segments":
        log("train: clips are drawn from segments of the whole video, and evaluated as runs of consecutive frames")
    mesh = parallel.make_mesh(cfg.parallel.fsdp)
    num_classes = len(train_index.class_names)

    make_model = functools.partial(create_configured_model, cfg, num_classes)
    network, abstract_params, _ = split_model(nnx.eval_shape(make_model), frozen=cfg.optimizer.freeze)
    steps_per_epoch = len(train_index.names) * cfg.data.repeats / cfg.train.global_batch_size
    num_steps = optimizer.count_steps(cfg.train.epochs, steps_per_epoch)
    for note in optimizer.notes(cfg.optimizer, cfg.train.epochs):
        log(note)
    tx, schedule = optimizer.make_optimizer(cfg.optimizer, abstract_params, steps_per_epoch, num_steps)
    state, shardings = create_state(lambda: values(make_model()), tx, cfg.train.ema_decay, mesh)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    log(f"model: {name}, {cfg.model.head.kind} head, {count:,} parameters, {parallel.compute_dtype(cfg.parallel)}")
    if cfg.parallel.compute_dtype == "auto" and jax.default_backend() == "cpu":
        log("float32, because bfloat16 is slower on a CPU (--config.parallel.compute_dtype=bfloat16 selects it)")

    if is_first:  # before anything in the folder changes
        with disk.writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            held.enter_context(disk.hold(workdir, log=log))
    heartbeat = held.enter_context(Heartbeat(workdir, active=is_first, log=log))
    checkpoints = Checkpoints(workdir, cfg.checkpoint.keep, log=log, common=common)
    held.enter_context(contextlib.closing(checkpoints))
    restored = checkpoints.restore_latest(shardings, state, train_index.class_names)
    evaluated, trained_on, init_videos = False, trained_videos.digests(train_index), ""
    if restored is not None:
        state, meta = restored
        changed = resume.changed_fields(meta["config"], cfg)
        resume.refuse_another_run(changed, workdir)
        before = changed.get("train.epochs", (cfg.train.epochs,))[0]
        asked = meta.get("num_steps", optimizer.count_steps(before, steps_per_epoch))  # earlier versions kept none
        complete = int(state.step) >= asked and cfg.train.epochs <= before
        if complete:
            resume.refuse_other_settings(changed, cfg.train.epochs, workdir)
        kept_videos = meta.get("videos", "")
        trained_on = resume.videos_to_keep(kept_videos, train_index, test_index, workdir, complete, log)
        init_videos = meta.get("init_videos", "")
        evaluated = BEST_METRIC in meta["metrics"]
        same_names = "data.source" not in changed  # shards may have none
        if complete and evaluated and same_names and (kept := parallel.from_first(load_evaluation(workdir))):
            resume.refuse_other_test_videos(kept.names, test_index, workdir)
        log(f"resumed from step {int(state.step)} of {num_steps} ({workdir})")
        for field, (before, now) in changed.items():  # a changed field makes another run
            log(f"changed since the checkpoint: config.{field} was {before!r}, is {now!r}")
    elif cfg.init_from:
        names = tuple(train_index.class_names)
        state, init_videos = warm_start(cfg, state, shardings, num_classes, log, names, test_index)
    if is_first:
        disk.write_atomically(workdir / "config.json", config.to_json(cfg) + "\n")
    heartbeat.describe(
        network=f"{name}, {cfg.model.head.kind} head",
        devices=parallel.describe_devices().removeprefix("running on "),
        videos=(len(train_index.names), len(test_index.names)),
        classes=num_classes,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
    )
    heartbeat.beat("starting", int(state.step))
    journal = Journal(workdir, int(state.step), evaluated=evaluated, active=is_first, cfg=cfg, log=log)
    held.enter_context(contextlib.closing(journal))
    run = Run(
        cfg=cfg,
        workdir=workdir,
        mesh=mesh,
        train_index=train_index,
        test_index=test_index,
        train_step=make_train_step(network, tx, cfg, num_classes, mesh, shardings, schedule),
        eval_step=make_eval_step(network, config.preprocessing(cfg.data), mesh),
        network=network,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        videos=trained_on,
        init_videos=init_videos,
        trained_on=int(trained_videos.were_among(init_videos, test_index).sum()),
        broken=BrokenLog(cfg.data, log=log_own),
        checkpoints=checkpoints,
        journal=journal,
        heartbeat=heartbeat,
        stop=stop,
        log=log,
    )
    return run, state


# -- the loop ----------------------------------------------------------------------------------------------------------


def _train(run: Run, state: TrainState) -> EvalResult | None:
    step = saved = int(state.step)  # `saved` is the newest step on disk
    result = None
    evaluated = parallel.from_first(run.journal.has(step, BEST_METRIC))
    if run.is_eval_step(step) and not evaluated:  # stopped between a save and its evaluation
        result = _evaluate(run, state)
        if result is not None:
            _save(run, state, result)
    first, on_cpu = step, jax.default_backend() == "cpu"
    batches = _device_batches(run, step)
    with (
        Progress(run.num_steps, "steps", "train", initial=step, shown=jax.process_index() == 0) as progress,
        contextlib.closing(Profile(run.cfg.profile, run.workdir, progress.message)) as profile,
    ):
        say, newest = progress.message, run.checkpoints.newest
        meter = Meter(run.journal, run.cfg.train, run.steps_per_epoch, run.broken, say, newest)
        while step < run.num_steps and not run.stop.asked():
            profile.before(step)
            waited = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - waited
            with announced(COMPILING, progress.message) if step == first else contextlib.nullcontext():
                state, metrics = run.train_step(state, batch)
            step += 1
            run.heartbeat.beat("running", step)
            if on_cpu and step - first <= STEPS_TO_TIME:
                jax.block_until_ready(metrics)
            profile.after(step, metrics)
            meter.add(step, metrics, waited)
            progress.update(1, note=meter.note)
            if on_cpu and step - first == STEPS_TO_TIME and progress.seconds_left() > LONG_SECONDS:
                progress.message(
                    f"on this CPU the run takes about {format_seconds(progress.seconds_left())} more: use a GPU or a "
                    "TPU, or a smaller network and smaller clips as in configs/small_cpu.py"
                )

            result = None
            if run.is_eval_step(step):
                meter.flush()
                with _saved_if_it_fails(run, state):
                    result = _evaluate(run, state)
            if result is not None or run.stop.requested or step % run.cfg.checkpoint.every_steps == 0:
                meter.flush()  # a state is saved only once its losses are known to be finite
                run.journal.sync()
                _save(run, state, result)
                saved = step
                meter.restart()
        if saved != step:  # a stop that was heard between two steps
            meter.flush()
            run.journal.sync()
    batches.close()
    stopped = step < run.num_steps or (run.stop.requested and result is None and not evaluated)
    if stopped and saved != step:
        _save(run, state, None)
    run.checkpoints.wait()
    if stopped:
        run.heartbeat.end("stopped", "a signal stopped it, and its state was saved")
        run.log(f"stopped at step {step} of {run.num_steps}; state saved in {run.workdir}")
        return None
    if result is None:  # the run was complete already
        kept = parallel.from_first(load_evaluation(run.workdir)) if evaluated else None
        result = kept or _evaluate(run, state)
    if result is None:
        run.heartbeat.end("stopped", "a signal stopped its evaluation; its training is complete")
        return None
    values = parallel.on_every_host((state.eval_params, state.batch_stats))
    if jax.process_index() == 0:
        path = report.write_report(run.workdir, run.test_index, run.cfg, model=run.network.build(*values))
        run.log(format_table(result))
        run.log(f"report: {path}")
    run.heartbeat.end("finished")
    return result


def _evaluate(run: Run, state: TrainState) -> EvalResult | None:
    """One evaluation, written to the journal and to disk; None if a stop was requested before its end."""
    run.heartbeat.beat("evaluating")

    def should_stop() -> bool:
        run.heartbeat.beat("evaluating")
        return run.stop.asked()

    result = evaluate(
        run.eval_step,
        state.eval_params,
        state.batch_stats,
        run.test_index,
        run.cfg,
        run.mesh,
        broken=run.broken,
        should_stop=should_stop,
        log=run.log,
    )
    if result is not None:
        protocol = dataclasses.replace(result.protocol, trained_on=run.trained_on)
        result = dataclasses.replace(result, protocol=protocol)
        step = int(state.step)
        run.journal.write(step, run.epoch(step), result.metrics)
        if jax.process_index() == 0:
            save_evaluation(result, run.workdir)
    return result


@contextlib.contextmanager
def _saved_if_it_fails(run: Run, state: TrainState) -> Iterator[None]:
    """Saves the state if its evaluation fails: the training before it is not lost.

    A job of several processes cannot: the others would have to save with the one that failed.
    """
    try:
        yield
    except Exception:
        if jax.process_count() == 1:
            what = f"the evaluation failed; the state of step {int(state.step)}"
            try:
                run.journal.sync()
                _save(run, state, None)
                run.checkpoints.wait()
                run.log(f"{what} is saved in {run.workdir}")
            except Exception as error:  # the first one is raised
                run.log(f"{what} cannot be saved: {error}")
        raise


def _save(run: Run, state: TrainState, result: EvalResult | None) -> None:
    meta = {
        "config": dataclasses.asdict(run.cfg),
        "class_names": list(run.train_index.class_names),
        "preprocessing": dataclasses.asdict(trained_preprocessing(run.cfg.data, run.train_index)),
        "version": __version__,
        "videos": run.videos,
        "init_videos": run.init_videos,
        "num_steps": run.num_steps,
    }
    run.heartbeat.beat("saving")
    run.checkpoints.save(state, meta, None if result is None else result.metrics)


def _device_batches(run: Run, start_step: int) -> Generator[dict[str, jax.Array]]:
    """Batches on the device; the next one is copied while the current one is used."""
    host_batches = train_batches(
        run.train_index,
        run.cfg.data,
        seed=run.cfg.seed,
        global_batch_size=run.cfg.train.global_batch_size,
        start_step=start_step,
        num_steps=run.num_steps - start_step,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        broken=run.broken,
        on_device=parallel.augments_on_device(run.cfg.data),
    )
    ahead: collections.deque[dict[str, jax.Array]] = collections.deque()
    for batch in host_batches:
        ahead.append(parallel.global_batch({k: batch[k] for k in batch if k != "video_id"}, run.mesh))
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead
