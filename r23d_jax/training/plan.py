"""A training on devices that are not here: its own step, compiled for them, and the largest batch that fits."""

import copy
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from r23d_jax.checkpoint.checkpoint import create_configured_model
from r23d_jax.checkpoint.state import TrainState, abstract_state
from r23d_jax.config import Config, UserError, validate
from r23d_jax.models.functional import split_model, values
from r23d_jax.runtime import parallel
from r23d_jax.runtime.absent import Absent
from r23d_jax.runtime.compiled import plain_text
from r23d_jax.training.input_rate import Input
from r23d_jax.training.optimizer import make_optimizer
from r23d_jax.training.step import make_train_step

_AHEAD = 2  # batches that wait on the devices while a step runs
_CLOSE = 0.05  # a batch this much larger does not fit: near enough
# How the compiler for TPUs says that a program finds no room, and how much it needs
_NO_ROOM = re.compile(
    r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM"
)


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled step, as one device sees it."""

    state: TrainState  # shapes and shardings of the state
    arguments: int  # bytes of the state and of a batch
    temporaries: int  # bytes that only a running step needs; all of them if the compiler found no room
    waiting: int  # bytes of the batches that wait for their step
    text: str  # the optimized program; "" if the compiler found no room for it

    @property
    def total(self) -> int:
        """Bytes that a training needs."""
        return self.arguments + self.temporaries + self.waiting


def held(tree: Any) -> int:
    """Bytes that each device holds of a tree of shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def chosen_for(cfg: Config, absent: Absent) -> Config:
    """A copy of a config whose "auto" fields have their values on these devices, not on this machine."""
    cfg, platform = copy.deepcopy(validate(cfg)), absent.kind.platform
    cfg.parallel.compute_dtype = parallel.compute_dtype(cfg.parallel, platform)
    cfg.data.augment_on = "device" if parallel.augments_on_device(cfg.data, platform) else "host"
    return cfg


def compile_step(cfg: Config, absent: Absent, read: Input) -> Program:
    """Compiles the step of a config from `chosen_for`; raises ConfigError if the devices do not divide the batch.

    The clips are one array, also where `train_batches` gives them in parts.
    """
    mesh = parallel.make_mesh(cfg.parallel.fsdp, absent.devices)

    def make() -> Any:
        return create_configured_model(cfg, read.num_classes)

    network, params, _ = split_model(nnx.eval_shape(make), frozen=cfg.optimizer.freeze)
    steps = read.num_videos * cfg.data.repeats / cfg.train.global_batch_size
    tx, schedule = make_optimizer(cfg.optimizer, params, steps, round(cfg.train.epochs * steps) + 1)
    state = abstract_state(lambda: values(make()), tx, cfg.train.ema_decay, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step: Any = make_train_step(network, tx, cfg, read.num_classes, mesh, shardings, schedule)
    clips, rows = cfg.train.global_batch_size // cfg.data.repeats, parallel.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((clips * shape[0], *shape[1:]), dtype, sharding=rows)
        for name, (shape, dtype) in read.rows.items()
    }
    waiting = _AHEAD * sum(leaf.size * leaf.dtype.itemsize for leaf in batch.values()) // mesh.size
    try:
        compiled = step.lower(state, batch).compile(absent.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        found = _NO_ROOM.search(str(error))
        if found is None:
            why = str(error).strip().splitlines()[0][:300]
            raise UserError(f"--devices={absent.name}: their compiler cannot compile this training: {why}") from error
        size, unit = (part for part in found.groups() if part)
        needed = int(float(size) * 2 ** (10 * (1 + "KMGT".index(unit))))
        return Program(state, 0, needed, waiting, "")
    memory = compiled.memory_analysis()
    # The state is donated: its output takes the place of its input
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + results
    return Program(state, memory.argument_size_in_bytes, temporaries, waiting, plain_text(compiled))


def fits(program: Program, absent: Absent) -> bool:
    """Whether a training runs on these devices."""
    return bool(program.text) and program.total <= absent.kind.usable


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest batch that fits with some settings: `batch` clips, 0 if none does, and the compiled step."""

    settings: dict[str, Any]
    batch: int
    program: Program | None


def variants(cfg: Config, devices: int) -> list[dict[str, Any]]:
    """Settings that make room for a larger batch: the config's own, and each of those that it does not use yet."""
    found: list[dict[str, Any]] = [{}]
    if not cfg.parallel.remat:
        found.append({"parallel.remat": True})
    if cfg.parallel.fsdp == 1 and devices > 1:
        found.append({"parallel.fsdp": devices})
    if cfg.train.accumulate == 1:
        found.append({"train.accumulate": 4})
    return found


def with_settings(cfg: Config, settings: dict[str, Any]) -> Config:
    """A copy of a config with other values, by dotted names of fields."""
    cfg = copy.deepcopy(cfg)
    for path, value in settings.items():
        group, _, name = path.partition(".")
        setattr(getattr(cfg, group), name, value)
    return cfg


def largest_batch(
    cfg: Config, absent: Absent, settings: dict[str, Any], compiled: Callable[[Config], Program], first: int = 0
) -> Largest:
    """Searches the largest global batch that fits.

    The next batch is where a straight line through the last needs reaches the memory. Near that, a compiler for TPUs
    makes programs that need less, so the search goes on in growing steps until one does not fit, and then by bisection.

    The config is from `chosen_for`, and the settings are of `variants`. The first batch to be tried is that of the
    config, or about `first` clips.
    """
    cfg, room = with_settings(cfg, settings), absent.kind.usable
    unit = len(absent.devices) * cfg.data.repeats * cfg.train.accumulate
    low, high, best = 0, 0, None  # in units; `high` does not fit, 0 while none is known
    at = max(1, round((first or cfg.train.global_batch_size) / unit))
    needs: dict[int, int] = {}
    while True:
        program = compiled(with_settings(cfg, {"train.global_batch_size": at * unit}))
        needs |= {0: held(program.state), at: program.total}
        if fits(program, absent):
            low, best = at, program
        else:
            high = at
        near = max(1, int(low * _CLOSE))
        if high and high - low <= near:
            return Largest(settings, low * unit, best)
        if high:
            turn = len(needs) < 6 or (high > 2 * low and len(needs) % 2)
            guess = _line(needs, low, high, room) if turn else round(math.sqrt(max(1, low) * high))
            at = min(max(guess, low + near), high - near)
        else:
            before = sorted(needs)[-2]
            guess = max(_line(needs, 0, low, room), _line(needs, before, low, room))
            if needs[low] > room / 2:  # a program whose need hardly grows, as yet
                guess = min(guess, 8 * low)
            at = max(guess, low + near * 2 ** max(0, len(needs) - 3))
        at = max(low + 1, at)


def _line(needs: dict[int, int], one: int, other: int, room: int) -> int:
    """Where the line through two needs reaches the memory; 0 for one that does not rise."""
    slope = (needs[other] - needs[one]) / (other - one)
    return int(one + (room - needs[one]) / slope) if slope > 0 else 0
