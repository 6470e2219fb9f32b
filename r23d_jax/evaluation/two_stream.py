"""Two trained streams on the same videos, their scores added: `launch.py --mode=eval` with `config.fusion`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax

from r23d_jax import config
from r23d_jax.checkpoint.checkpoint import LoadedModel, load_checkpoint
from r23d_jax.config import Config, look_up
from r23d_jax.evaluation import fusion
from r23d_jax.evaluation.evaluate import evaluate
from r23d_jax.evaluation.result import EvalResult
from r23d_jax.evaluation.run import open_videos
from r23d_jax.evaluation.step import make_eval_step
from r23d_jax.models.functional import split_model
from r23d_jax.runtime import parallel


def evaluate_two_streams(cfg: Config, workdir: Path, log: Callable[[str], None] = print) -> EvalResult:
    """Evaluates two trained streams on the same videos and views, adds their scores, and writes a report of all three.

    Each stream reads its own kind of frames, from where it was trained unless `cfg.fusion` says otherwise; split,
    lists and classes are those of its training, the views are `cfg.eval`'s.

    Raises:
      config.UserError: if a checkpoint is missing, or the two were not trained and tested on the same videos.
    """
    config.validate(cfg)
    log, _ = parallel.loggers(log)
    log(parallel.describe_devices())
    streams = [
        _Stream.load(name, folder, root, log)
        for name, folder, root in (
            ("first", cfg.fusion.first, cfg.fusion.first_root),
            ("second", cfg.fusion.second, cfg.fusion.second_root),
        )
    ]
    weight, how = look_up(CHOICES, cfg.fusion.choice, "config.fusion.choice")(cfg, streams, log)
    first, second = (stream.evaluate(cfg, "test", log) for stream in streams)
    fused = fusion.fuse(first, second, weight, cfg.fusion.scores)
    if jax.process_index() == 0:
        titles = tuple(f"{stream.loaded.config.data.input} ({stream.loaded.name})" for stream in streams)
        page = fusion.write_page(workdir, titles, (first, second, fused), weight, how, cfg.fusion.scores)
        log(fusion.format_streams(titles, (first, second, fused), weight, how, cfg.fusion.scores))
        log(f"report: {page}")
    return fused


@dataclasses.dataclass(frozen=True)
class _Stream:
    """One of two streams: a checkpoint, and where its frames lie."""

    loaded: LoadedModel
    data: config.DataConfig

    @classmethod
    def load(cls, name: str, folder: str, root: str, log: Callable[[str], None]) -> "_Stream":
        if not folder:
            raise config.ConfigError(f"config.fusion.{name} is missing: the folder of a trained run")
        loaded = load_checkpoint(folder)
        log(f"{name} stream: {loaded.path}, {loaded.name}, {loaded.config.data.input}")
        data = loaded.config.data
        return cls(loaded, dataclasses.replace(data, root=root or data.root))

    def evaluate(self, cfg: Config, subset: Literal["test", "held_out"], log: Callable[[str], None]) -> EvalResult:
        own = dataclasses.replace(self.loaded.config, data=self.data, eval=cfg.eval)
        index = open_videos(own, subset, log)
        if index.class_names != self.loaded.class_names:
            raise config.UserError(f"{self.loaded.path}: was trained on other classes than its lists have now")
        mesh = parallel.make_mesh(own.parallel.fsdp)
        network, params, batch_stats = split_model(self.loaded.model)
        step = make_eval_step(network, self.loaded.preprocessing, mesh)
        result = evaluate(step, params, batch_stats, index, own, mesh, log=log)
        assert result is not None, "nothing asked this evaluation to stop"
        return result


def _held_out(cfg: Config, streams: list[_Stream], log: Callable[[str], None]) -> tuple[float, str]:
    shares = [stream.loaded.config.data.hold_out for stream in streams]
    if not all(shares) or shares[0] != shares[1]:
        raise config.UserError(
            f"config.fusion.choice='held_out': the streams were trained with config.data.hold_out="
            f"{shares[0]:g} and {shares[1]:g}; train both with the same share, e.g. 0.1, or choose another weight"
        )
    first, second = (stream.evaluate(cfg, "held_out", log) for stream in streams)
    weight = fusion.best_weight(first, second, cfg.fusion.scores)
    return weight, f"the best on {len(first.names)} training videos that neither stream was trained on"


# config.fusion.choice -> (config, streams, log) -> weight of the first stream, and how it was chosen
CHOICES: dict[str, Callable[[Config, list[_Stream], Callable[[str], None]], tuple[float, str]]] = {
    "fixed": lambda cfg, streams, log: (cfg.fusion.weight, "fixed"),
    "sum": lambda cfg, streams, log: (0.5, "both alike"),
    "held_out": _held_out,
}
