"""Runs the trainings of a study in one process, with all frames of all videos in the memory of the device.

    python -m benchmarks.resident --config configs/study.py:heads_full_ucf5 --workdir runs/heads_full --minutes 10 \
        --set data.root=data/ucf5/frames --set data.lists=ucfTrainTestlist

For small sets of videos, on a GPU that is there for minutes: nothing is loaded in between, and rows of the study that
differ in seed, split or fold share one compiled step. Needs neither TensorFlow nor ml-collections. The workdir is that
of `r23d-jax study`, with the same tables: a row that is done, or that another process is working on, is not run. One
whose files are missing, or that this runner does not know, is left out.

Unlike there, trainings of as many epochs take the same number of steps, that of the largest split, and the clips are
drawn by numpy. There is no checkpoint, so only this runner can add their streams: from the scores of both, with the
views of their own evaluations.
"""

import argparse
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r23d_jax import config
from r23d_jax.checkpoint.checkpoint import create_configured_model
from r23d_jax.checkpoint.state import TrainState, abstract_state
from r23d_jax.config import Config, DataConfig, UserError
from r23d_jax.data.find.directions import mirrors
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.read import plain
from r23d_jax.data.read.views import clip_steps, make_views, video_strides
from r23d_jax.data.sources import open_index
from r23d_jax.evaluation.fusion import fuse
from r23d_jax.evaluation.result import EvalResult, load_evaluation, save_evaluation
from r23d_jax.evaluation.scores import Scores
from r23d_jax.models.augment import finish_clips
from r23d_jax.models.convolution import compiled_for
from r23d_jax.models.functional import initializer_options, split_model
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.runtime import backend, disk, parallel
from r23d_jax.runtime.disk import write_atomically
from r23d_jax.runtime.progress import Progress
from r23d_jax.study.costs import cost_of
from r23d_jax.study.grid import Cell, cells, load_study, with_settings
from r23d_jax.study.results import write_results
from r23d_jax.study.run import CELL, LOCK, ended, evaluations, is_done, keep_outcome, recount
from r23d_jax.training.optimizer import count_steps, make_optimizer
from r23d_jax.training.step import make_update
from r23d_jax.training.warm_start import check_source, warm_start

Batch = dict[str, np.ndarray]


def main() -> int:
    """Runs the trainings that are not done yet, until the time is over; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resident", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a file with get_study(arg)")
    parser.add_argument("--workdir", required=True, type=Path, help="folder for results.md and a folder per training")
    parser.add_argument("--only", default="", metavar="TEXT", help="run only trainings whose name contains TEXT")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="set a field of the base config"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no training starts")
    args = parser.parse_args()
    try:
        return run(args.config, args.workdir, args.only, args.set, args.minutes)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def run(study_file: str, workdir: Path, only: str, settings: list[str], minutes: float) -> int:
    """As `main`; raises UserError for a study or videos that do not suit."""
    deadline = time.monotonic() + 60 * minutes
    path, _, arg = study_file.partition(":")
    study = with_settings(load_study(path, arg), settings)
    grid = cells(study)
    wanted = [cell for cell in grid if only in cell.name and not is_done(cell, workdir)]
    left_out = {cell.name: problem for cell in wanted if (problem := _problem(cell, workdir))}
    if wanted and len(left_out) == len(wanted):
        more = f" (and {len(wanted) - 1} more)" if len(wanted) > 1 else ""
        raise UserError(f"nothing can be run here: {next(iter(left_out.values()))}{more}")
    for problem in left_out.values():
        print(f"left out: {problem}")
    wanted = [cell for cell in wanted if cell.name not in left_out]
    trainings = [cell for cell in wanted if not cell.streams]
    failed = _train_all(trainings, grid, workdir, deadline) if trainings else 0
    for cell in wanted:
        if cell.streams:
            print(cell.name, flush=True)
            failed += _attempt(cell, workdir, functools.partial(_add_streams, cell, workdir)) is None
    workdir.mkdir(parents=True, exist_ok=True)
    page = write_results(study, grid, workdir, print)
    done = sum(is_done(cell, workdir) for cell in wanted)
    counts = {"done": done, "failed": failed, "left": len(wanted) - done - failed, "left out": len(left_out)}
    print(f"{', '.join(f'{count} {what}' for what, count in counts.items() if count) or 'nothing to do'}: {page}")
    return min(failed, 1)


def _train_all(trainings: list[Cell], grid: list[Cell], workdir: Path, deadline: float) -> int:
    """Runs trainings until the time is over; returns how many failed."""
    known = [cell for cell in grid if not (cell.streams or _problem(cell, workdir))]
    sides = {cell.name: _sides(cell.config.data) for cell in known}
    num_steps: dict[tuple[float, int], int] = {}
    for cell in known:  # those that are done, too: which ones are left must not change the result
        steps = _num_steps(len(sides[cell.name][0]), cell.config)
        num_steps[_length(cell)] = max(steps, num_steps.get(_length(cell), 0))
    failed, took, decoding, store, kept = 0, 0.0, 0.0, None, ""  # seconds of the last training, and of the last folder
    trainings = sorted(trainings, key=lambda cell: cell.config.data.root)  # the device keeps the frames of one folder
    for number, cell in enumerate(trainings, start=1):
        data = cell.config.data
        if time.monotonic() + took + (decoding if kept != data.root else 0.0) > deadline:
            print(f"the time is over before training {number} of {len(trainings)}; call again to continue")
            break
        if store is None or kept != data.root:
            started, store, kept = time.monotonic(), None, data.root  # frees the last one first
            of_root = [index for cell in trainings if cell.config.data.root == kept for index in sides[cell.name]]
            store = FrameStore(of_root, data.input == "flow")
            decoding = time.monotonic() - started
            print(
                f"{store.count:,} frames, {store.nbytes / 2**30:.2f} GiB on {jax.devices()[0].device_kind}", flush=True
            )
        print(f"[{number}/{len(trainings)}] {cell.name}", flush=True)
        work = functools.partial(_run_cell, cell, workdir, store, *sides[cell.name], num_steps[_length(cell)])
        seconds = _attempt(cell, workdir, work)
        failed += seconds is None
        took = seconds or took
    return failed


def _attempt(cell: Cell, workdir: Path, work: Callable[[], float]) -> float | None:
    """Does the work of a cell unless another process does or did it; returns its seconds, and None if it failed."""
    folder = workdir / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with disk.hold(folder, LOCK, log=print):
            if not is_done(cell, workdir):
                return work()
            print("    another process has done it", flush=True)
    except disk.InUse as error:
        print(f"    skipped: {error}", flush=True)
    except UserError as error:
        print(f"    failed: {error}", flush=True)
        return None
    return 0.0


def _run_cell(
    cell: Cell, workdir: Path, store: "FrameStore", train: VideoIndex, test: VideoIndex, num_steps: int
) -> float:
    """Trains a cell and writes its files; returns the seconds that it took."""
    started = time.monotonic()
    result = _train(cell.config, store, train, test, num_steps)
    return _keep(cell, workdir, result, time.monotonic() - started, [])


def _add_streams(cell: Cell, workdir: Path) -> float:
    """Adds the scores of two trainings, if both are done; returns the seconds that it took."""
    started, fusion = time.monotonic(), cell.config.fusion
    waits = [stream.name for stream in cell.streams if not is_done(stream, workdir)]
    if waits:
        print(f"    waits for {' and '.join(waits)}", flush=True)
        return 0.0
    made_of = evaluations(cell, workdir)
    first, second = (load_evaluation(workdir / stream.name) for stream in cell.streams)
    if first is None or second is None:
        missing = cell.streams[0 if first is None else 1].name
        raise UserError(f"{workdir / missing}: has no evaluation.json and evaluation.npz; run it again")
    weight = 0.5 if fusion.choice == "sum" else fusion.weight
    result = fuse(first, second, weight, fusion.scores)
    return _keep(cell, workdir, result, time.monotonic() - started, made_of)


def _keep(cell: Cell, workdir: Path, result: EvalResult, took: float, made_of: list[list[str]]) -> float:
    """Writes the files of a cell that took these seconds, and returns them."""
    folder = workdir / cell.name
    write_atomically(folder / CELL, config.to_json(cell.config) + "\n")
    save_evaluation(result, folder)
    recount(cell, folder, keep_outcome(folder, 0, took, cost_of(cell), made_of))
    print(f"    {ended(result.metrics, took)}", flush=True)
    return took


# Fields that this runner leaves alone, and the only value of them that it knows
ONLY = {
    "data.source": "frames",
    "data.crop": "multi_scale",
    "data.sampling": "random",
    "data.hue_jitter": 0.0,
    "data.repeats": 1,
    "data.hold_out": 0.0,
    "eval.crops": 1,
    "eval.checkpoint": "latest",
    "optimizer.freeze": [],
    "train.ema_decay": 0.0,
}


def _problem(cell: Cell, workdir: Path) -> str:
    """Why this runner cannot run a cell; "" if it can."""
    if cell.streams:
        held_out = cell.config.fusion.choice == "held_out"
        return f"{cell.name}: config.fusion.choice='held_out' is not known here; use study" if held_out else ""
    if cell.needs:
        return f"{cell.name}: needs {'; '.join(cell.needs.values())}"
    values = config.flat(dataclasses.asdict(cell.config))
    for name, value in ONLY.items():
        if values[name] != value:
            return f"{cell.name}: config.{name}={values[name]!r}: only {value!r} is known here; use study"
    try:
        check_source(cell.config, workdir / cell.name)
    except UserError as error:
        return f"{cell.name}: {error}"
    return ""


def _sides(data: DataConfig) -> tuple[VideoIndex, VideoIndex]:
    sides: tuple[Literal["train"], Literal["test"]] = ("train", "test")
    return tuple(open_index(data, side) for side in sides)  # type: ignore[return-value]


def _length(cell: Cell) -> tuple[float, int]:
    """What trainings of the same number of steps share."""
    return cell.config.train.epochs, cell.config.train.global_batch_size


def _num_steps(videos: int, cfg: Config) -> int:
    return count_steps(cfg.train.epochs, videos / cfg.train.global_batch_size)


class FrameStore:
    """All frames of some videos on the device, one after another: (N, h, w, 3) uint8, or (N, h, w, 2) of flow."""

    def __init__(self, sides: list[VideoIndex], flow: bool = False):
        wanted = {str(name): (index, row) for index in sides for row, name in enumerate(index.names.tolist())}
        with ThreadPoolExecutor() as pool, Progress(len(wanted), "videos", "decode") as progress:

            def decode(name: str) -> np.ndarray:
                index, row = wanted[name]
                contents = [index.frames.read(row, frame) for frame in range(int(index.num_frames[row]))]
                try:
                    return plain.decode_windows(contents, lambda height, width: (0, 0, height, width), flow)
                except plain.PictureError as error:
                    raise UserError(f"{index.frames.locate(row, 0)}: {error}; prepare this video again") from None

            clips = []
            for clip in pool.map(decode, wanted):
                clips.append(clip)
                progress.update(1)
        sizes = {clip.shape[1:3] for clip in clips}
        if len(sizes) > 1:
            shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes)[:5])
            raise UserError(f"the videos have frames of different sizes ({shown}): this runner needs one size")
        (self.size,) = sizes
        counts = np.array([len(clip) for clip in clips])
        self._first = dict(zip(wanted, (np.cumsum(counts) - counts).tolist(), strict=True))
        self.frames = jax.device_put(np.concatenate(clips))
        self.count, self.nbytes = len(self.frames), self.frames.nbytes
        last = jax.jit(lambda frames, k: frames[k])(self.frames, np.array([self.count - 1]))
        if not np.array_equal(last[0], clips[-1][-1]):  # 32 bits do not count the pixels of 4 GiB
            raise RuntimeError("the device reads wrong frames from an array this large")

    def first(self, index: VideoIndex) -> np.ndarray:
        """(N,) int64: where the frames of each video begin."""
        return np.array([self._first[str(name)] for name in index.names.tolist()])


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What trainings that differ in seed, split or fold have in common."""

    initialize: Any  # seed -> state
    update: Any  # (state, frames, batch, seed) -> state, metrics
    scores: Any  # (params, batch_stats, frames, batch) -> logits


@functools.cache
def _compiled(text: str, num_classes: int, steps_per_epoch: float, num_steps: int) -> Compiled:
    """The programs of a config, as JSON."""
    cfg = config.from_json(text)
    mesh, pre = parallel.make_mesh(devices=jax.devices()[:1]), config.preprocessing(cfg.data)
    network, params, _ = split_model(nnx.eval_shape(lambda: create_configured_model(cfg, num_classes)))
    tx, schedule = make_optimizer(cfg.optimizer, params, steps_per_epoch, num_steps)

    def initialize(seed: Any) -> tuple[Any, Any]:
        return split_model(create_configured_model(dataclasses.replace(cfg, seed=seed), num_classes))[1:]

    def state_of(seed: jax.Array) -> TrainState:
        params, batch_stats = initialize(jax.random.key(seed))
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), {})

    shapes = abstract_state(lambda: initialize(0), tx, 0.0, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    update = make_update(network, tx, cfg, num_classes, mesh, shardings, schedule)
    options = parallel.compiler_options(mesh)

    def cut(frames: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return batch | {"video": frames[batch["video"]]}

    @compiled_for(parallel.platform(mesh))
    def step(state: Any, frames: jax.Array, batch: dict[str, jax.Array], seed: jax.Array) -> Any:
        return update(state, cut(frames, batch), jax.random.fold_in(jax.random.key(seed), state.step))

    @compiled_for(parallel.platform(mesh))
    def score(params: Any, batch_stats: Any, frames: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        video = finish_clips(cut(frames, batch), pre)["video"]
        return network.apply_eval(params, batch_stats, prepare_video(video, pre)).astype(jnp.float32)

    return Compiled(
        jax.jit(state_of, out_shardings=shardings, compiler_options=initializer_options()),
        jax.jit(step, donate_argnums=0, compiler_options=options),
        jax.jit(score, compiler_options=options),
    )


def _train(cfg: Config, store: FrameStore, train: VideoIndex, test: VideoIndex, num_steps: int) -> EvalResult:
    data = dataclasses.replace(cfg.data, split=1, fold=0)
    shared = config.to_json(dataclasses.replace(cfg, seed=0, data=data, init_from="", init_skip=()))
    made = _compiled(shared, len(train.class_names), num_steps / cfg.train.epochs, num_steps)
    state = made.initialize(np.uint32(cfg.seed))
    if cfg.init_from:
        places = jax.tree.map(lambda leaf: leaf.sharding, state)
        names = tuple(train.class_names)
        state, _ = warm_start(cfg, state, places, len(names), lambda line: print(f"    {line}"), names, test)
    with Progress(num_steps, "steps", "train") as progress:
        for step, batch in enumerate(_train_batches(cfg, store, train, num_steps)):
            state, metrics = made.update(state, store.frames, batch, np.uint32(cfg.seed))
            progress.update(1)
            if step % 100 == 99 or step == num_steps - 1:
                if not all(math.isfinite(float(metrics[name])) for name in ("train/loss", "train/grad_norm")):
                    raise UserError("the loss is not finite: lower config.optimizer.learning_rate")
    return _evaluate(cfg, store, test, made, state)


def _train_batches(cfg: Config, store: FrameStore, index: VideoIndex, num_steps: int) -> Iterator[Batch]:
    """Which frames, which windows and which numbers; a function of (seed, step), the same for every network."""
    data, size = cfg.data, cfg.train.global_batch_size
    pre = config.preprocessing(data)
    first, labels = store.first(index), index.labels.astype(np.int32)
    strides, lengths = video_strides(index, data), index.num_frames.astype(np.int64)
    order = functools.lru_cache(maxsize=2)(
        lambda epoch: np.random.default_rng((cfg.seed, epoch)).permutation(len(index))
    )
    for step in range(num_steps):
        places = np.arange(step * size, (step + 1) * size)
        rows = np.array([order(place // len(index))[place % len(index)] for place in places.tolist()])
        rng = np.random.default_rng((cfg.seed, 1 << 32, step))
        pace = (1 + data.stride_jitter) ** rng.uniform(-1, 1, size) if data.stride_jitter else np.ones(size)
        offsets = np.stack([clip_steps(pre.read_frames, stride) for stride in (strides[rows] * pace).tolist()])
        room = np.maximum(lengths[rows] - offsets[:, -1] - 1, 0) + 1
        start = (rng.random(size) * room).astype(np.int64)
        frames = first[rows, None] + (start[:, None] + offsets) % lengths[rows, None]
        side = np.maximum((rng.choice(data.crop_scales, size) * min(store.size)).astype(np.int32), 1)
        corner = [(rng.random(size) * (length - side + 1)).astype(np.int32) for length in store.size]
        batch = {
            "video": frames.astype(np.int32),
            "label": labels[rows],
            "mask": np.ones(size, np.float32),
            "window": np.stack([*corner, side, side], 1)[:, None],
        }
        if data.color_jitter:
            low = max(0.0, 1 - data.color_jitter)
            factors = low + rng.random((size, 1, 3)) * (1 + data.color_jitter - low)
            batch["color_jitter"] = factors.astype(np.float32)
        if mirrors(data.flip, index.class_names):
            batch["flip"] = rng.random((size, 1)) < 0.5
        if data.random_gray:
            batch["random_gray"] = rng.random((size, 1)) < data.random_gray
        yield batch


def _offsets(index: VideoIndex, cfg: Config) -> np.ndarray:
    """(N, read_frames) int64: frames of a clip of each video, counted from its first."""
    length = config.preprocessing(cfg.data).read_frames
    return np.stack([clip_steps(length, stride) for stride in video_strides(index, cfg.data).tolist()])


def _evaluate(cfg: Config, store: FrameStore, index: VideoIndex, made: Compiled, state: Any) -> EvalResult:
    pre = config.preprocessing(cfg.data)
    views = make_views(index.num_frames, pre, cfg.eval, video_strides(index, cfg.data))
    first, offsets, lengths = store.first(index), _offsets(index, cfg), index.num_frames.astype(np.int64)
    window = np.array(plain.center_window(pre, *store.size), np.int32)
    scores, size = Scores(index, views), cfg.eval.batch_size
    for begin in range(0, len(views), size):
        row = np.arange(begin, begin + size)
        real = row < len(views)
        row = np.minimum(row, len(views) - 1)
        videos = views.video[row]
        frames = (views.start[row, None] + offsets[videos]) % lengths[videos, None]
        batch = {
            "video": (first[videos, None] + frames).astype(np.int32),
            "window": np.tile(window, (size, 1, 1)),
        }
        logits = made.scores(state.eval_params, state.batch_stats, store.frames, batch)
        scores.add(np.asarray(logits), row.astype(np.int32), real.astype(np.float32))
    return scores.result(cfg)


if __name__ == "__main__":
    backend.prepare_process()
    sys.exit(main())
