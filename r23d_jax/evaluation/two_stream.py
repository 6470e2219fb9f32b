"""Evaluates two trained streams on the same videos and adds their scores, as `config.fusion` says."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax

from r23d_jax import config
from r23d_jax.checkpoint.checkpoint import FOLDER, LoadedModel, load_checkpoint
from r23d_jax.config import Config, look_up
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.evaluation import browser, fusion
from r23d_jax.evaluation.error_maps import error_maps
from r23d_jax.evaluation.figures import escape
from r23d_jax.evaluation.result import EVALUATIONS, EvalResult
from r23d_jax.evaluation.run import score_checkpoint
from r23d_jax.runtime import parallel


def evaluate_two_streams(cfg: Config, workdir: Path, log: Callable[[str], None] = print) -> EvalResult:
    """Evaluates two trained streams on the same videos and views, adds their scores, and writes a report of all three.

    Each stream reads its own kind of frames, from the folder it was trained on unless `cfg.fusion` names another.
    Split and classes are those of its training, and so are the lists unless `cfg.data.lists` was set; the views are
    those of `cfg.eval`.

    Raises:
      config.UserError: if a checkpoint is missing, or the two were not trained and tested on the same videos.
    """
    config.validate(cfg)
    log, _ = parallel.loggers(log)
    log(parallel.describe_devices())
    fields = cfg.fusion
    lists = cfg.data.lists if cfg.data.lists != Config().data.lists else ""
    streams = [
        _load("first", fields.first, fields.first_root, lists, cfg.eval.checkpoint, log),
        _load("second", fields.second, fields.second_root, lists, cfg.eval.checkpoint, log),
    ]
    weight, how = look_up(CHOICES, fields.choice, "config.fusion.choice")(cfg, streams, log)
    (first, first_index), (second, second_index) = _evaluate(cfg, streams, "test", log)
    results = first, second, fusion.fuse(first, second, weight, fields.scores)
    if jax.process_index() == 0:
        titles = tuple(f"{stream.config.data.input} ({stream.name})" for stream in streams)
        trained_here = (workdir / FOLDER).is_dir()  # its own report stays
        folder = workdir / EVALUATIONS / "two-streams" if trained_here else workdir
        maps = _maps_of_both(streams, results[2], (first_index, second_index))
        shown = second_index if streams[0].config.data.input == "flow" else first_index  # flow is no picture to play
        page = fusion.write_page(folder, titles, results, weight, how, fields.scores, shown, maps)
        log(fusion.format_streams(titles, results, weight, how, fields.scores))
        log(f"report: {page}")
    return results[2]


def _load(name: str, folder: str, root: str, lists: str, which: str, log: Callable[[str], None]) -> LoadedModel:
    """A checkpoint whose config names the folders of its frames and its lists."""
    if not folder:
        raise config.ConfigError(f"config.fusion.{name} is missing: the folder of a trained run")
    loaded = load_checkpoint(folder, which)
    data = config.with_preprocessing(loaded.config.data, loaded.preprocessing)
    log(f"{name} stream: {loaded.path}, {loaded.chosen}: {loaded.name}, {data.input}")
    data = dataclasses.replace(data, root=root or data.root, lists=lists or data.lists)
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, data=data))


def _evaluate(
    cfg: Config, streams: list[LoadedModel], subset: Literal["test", "held_out"], log: Callable[[str], None]
) -> list[tuple[EvalResult, VideoIndex]]:
    here = [dataclasses.replace(stream.config.parallel, fsdp=cfg.parallel.fsdp) for stream in streams]
    configs = [
        dataclasses.replace(stream.config, eval=cfg.eval, parallel=parallel)
        for stream, parallel in zip(streams, here, strict=True)
    ]
    return [score_checkpoint(loaded, own, subset, log) for loaded, own in zip(streams, configs, strict=True)]


def _maps_of_both(streams: list[LoadedModel], fused: EvalResult, indexes: Sequence[VideoIndex]) -> browser.Maps:
    """What each stream looked at in the clip in the middle, for the class that their sum predicts."""
    if not len(browser.confident_errors(fused)):
        return browser.no_map
    draws = {
        f"{stream.config.data.input} ({stream.name})": error_maps(stream, fused, index, stream.config)
        for stream, index in zip(streams, indexes, strict=True)
    }

    def draw(row: int, video: int) -> str:
        del row  # each index has the videos in the order of the results
        return "".join(f'<div class="small">{escape(title)}</div>{maps(video, video)}' for title, maps in draws.items())

    return draw


def _held_out(cfg: Config, streams: list[LoadedModel], log: Callable[[str], None]) -> tuple[float, str]:
    shares = [stream.config.data.hold_out for stream in streams]
    if not all(shares) or shares[0] != shares[1]:
        raise config.UserError(
            f"config.fusion.choice='held_out': the streams were trained with config.data.hold_out="
            f"{shares[0]:g} and {shares[1]:g}; train both with the same share, e.g. 0.1, or choose another weight"
        )
    (first, _), (second, _) = _evaluate(cfg, streams, "held_out", log)
    weight = fusion.best_weight(first, second, cfg.fusion.scores)
    return weight, f"the best on {len(first.names)} training videos that neither stream was trained on"


# config.fusion.choice -> (config, streams, log) -> weight of the first stream, and how it was chosen
CHOICES: dict[str, Callable[[Config, list[LoadedModel], Callable[[str], None]], tuple[float, str]]] = {
    "fixed": lambda cfg, streams, log: (cfg.fusion.weight, "fixed"),
    "sum": lambda cfg, streams, log: (0.5, "equal weights"),
    "held_out": _held_out,
}
