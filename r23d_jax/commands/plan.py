"""python -m r23d_jax plan: what a training needs on devices that are not here, by compiling its step for them."""

import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags

from r23d_jax import config
from r23d_jax.commands import train
from r23d_jax.commands.errors import guarded
from r23d_jax.commands.json_output import json_document
from r23d_jax.runtime import absent, backend, program

if TYPE_CHECKING:  # jax is imported only after `absent.prepare_process`
    from r23d_jax.training.input_rate import Input
    from r23d_jax.training.plan import Program

_USAGE = """--config=NAME_OR_FILE[:ARG] --devices=v5e:4x4 [--largest] [overrides]

Compiles the training step for devices that need not be here, and says what it needs there. Nothing is run on them.
Any field of the config is set as in a training, e.g. --config.train.global_batch_size=256.
"""
_SHOWN = 8  # kinds of work


def main(argv: list[str]) -> int:
    """Prints the plan; returns the exit status."""
    return guarded("plan", lambda: _run(_parse(argv), argv))


def _parse(argv: list[str]) -> flags.FlagValues:
    return train.parse(argv, "plan", _USAGE, _define_flags)


def _define_flags(values: flags.FlagValues) -> None:
    known = ", ".join(f"{name}:{kind.example}" for name, kind in absent.KINDS.items())
    flags.DEFINE_string("devices", "", f"the devices to compile for, e.g. {known}", values)
    flags.DEFINE_bool("json", False, "print one JSON object at the end; all else goes to standard error", values)
    flags.DEFINE_bool("largest", False, "search the largest batch that fits; compiles 12 to 40 times", values)
    about = "part of the peak that a step reaches, where the compiler estimates no time (docs/performance.md)"
    flags.DEFINE_float("utilization", 0.2, about, 0.001, 1.0, flag_values=values)


def _run(values: flags.FlagValues, argv: list[str]) -> int:
    if not values.devices:
        raise config.ConfigError(f"--devices is missing; known: {', '.join(absent.KINDS)}, e.g. --devices=v5e:4x4")
    with json_document(values.json) as told:
        told |= _plan(values)
        print(f"\nagain: {program.command('plan')} {shlex.join(argv)}")
    return 0


def _plan(values: flags.FlagValues) -> dict[str, Any]:
    """Prints the plan, and returns it for JSON."""
    absent.prepare_process()
    backend.prepare_process()
    target = absent.absent_devices(values.devices)
    from r23d_jax import models
    from r23d_jax.runtime import parallel
    from r23d_jax.training import plan
    from r23d_jax.training.input_rate import measure_input

    cfg = plan.chosen_for(values.config, target)
    name, count = models.model_name(cfg.model), len(target.devices)
    print(f"{name}, {cfg.model.head.kind} head, {cfg.parallel.compute_dtype}, on {count} x {target.kind_name}")
    print("compiled for these devices, and not run on them: nothing here is a measurement of them", flush=True)
    read = measure_input(cfg, on_device=parallel.augments_on_device(cfg.data))
    started = time.monotonic()
    step = plan.compile_step(cfg, target, read)
    print(f"compiled the step in {time.monotonic() - started:.0f} s", flush=True)
    told = {"network": name, "head": cfg.model.head.kind, "devices": count, "kind": target.kind_name}
    told |= _print_memory(cfg, step, target) | _print_program(step, target)
    told |= _print_speed(cfg, step, read, target, values.utilization)
    if values.largest:
        compiled = lambda variant: step if variant == cfg else plan.compile_step(variant, target, read)  # noqa: E731
        told |= _print_largest(cfg, target, compiled)
    return told


def _print_memory(cfg: config.Config, step: "Program", target: absent.Absent) -> dict[str, Any]:
    """The bytes of one device."""
    from r23d_jax.training import plan

    trees = {
        "parameters": step.state.params,
        "BN statistics": step.state.batch_stats,
        f"{cfg.optimizer.name} state": step.state.opt_state,
        "moving average": step.state.ema,
    }
    print(f"\n{'memory of one device':34}{'MiB':>10}")
    for name, tree in trees.items():
        if size := plan.held(tree):
            print(f"  {name:32}{size / 2**20:>10.1f}")
    kind = target.kind
    if step.text:
        print(f"  {'batch, and padding of arrays':32}{(step.arguments - plan.held(step.state)) / 2**20:>10.1f}")
    print(f"  {'batches that wait':32}{step.waiting / 2**20:>10.1f}")
    what = "temporaries of the step" if step.text else "the step, with all of these"
    print(f"  {what:32}{step.temporaries / 2**20:>10.1f}")
    print(f"  {'total':32}{step.total / 2**20:>10.1f}")
    share = "" if kind.usable == kind.memory else f", {kind.usable / kind.memory:.0%} of its memory, as jax takes"
    print(f"  {'usable':32}{kind.usable / 2**20:>10.1f}{share}")
    margin = (kind.usable - step.total) / kind.usable
    if plan.fits(step, target):
        print(f"It fits, with a margin of {margin:.0%}.")
    else:
        print("It does NOT fit: lower config.train.global_batch_size, or see --largest.")
    if kind.platform == "gpu":
        print("cuDNN's workspaces are not in it: they are chosen on the device.")
    sizes = {"temporaries": step.temporaries, "waiting": step.waiting, "total": step.total, "usable": kind.usable}
    return {"bytes": {name: plan.held(tree) for name, tree in trees.items()} | sizes, "fits": plan.fits(step, target)}


def _print_program(step: "Program", target: absent.Absent) -> dict[str, Any]:
    """What devices send each other, and the share of each kind of work."""
    from r23d_jax.runtime.compiled import collectives, count_gpu, count_tpu

    if not step.text:
        return {}
    print(f"\n{'sent by a device in a step':34}{'number':>10}{'MiB':>10}")
    messages = collectives(step.text, len(target.devices))
    for kind, (number, sent) in sorted(messages.items()):
        print(f"  {kind:32}{number:>10}{sent / 2**20:>10.1f}")
    if len(target.devices) == 1:
        print(f"  {'nothing: it is one device':32}")
    if target.kind.platform == "gpu":
        parts = {kind: moved for kind, (_, moved) in count_gpu(step.text)["kernels"].items()}
        what, unit, size = "read and written by kernels", "MiB", 2**20
    else:
        parts = count_tpu(step.text)["cycles_by_operation"]
        what, unit, size = "cycles, the compiler's estimate", "million", 10**6
    total = sum(parts.values())
    print(f"\n{what:34}{unit:>10}{'share':>10}")
    for kind, part in sorted(parts.items(), key=lambda item: -item[1])[:_SHOWN]:
        print(f"  {kind:32}{part / size:>10.1f}{part / total:>10.1%}")
    print(f"  {'all':32}{total / size:>10.1f}")
    sent = {kind: {"number": number, "bytes": size} for kind, (number, size) in messages.items()}
    return {"sent": sent, "bytes_moved" if target.kind.platform == "gpu" else "cycles": parts}


def _print_speed(
    cfg: config.Config, step: "Program", read: "Input", target: absent.Absent, utilization: float
) -> dict[str, Any]:
    """Time, clips a second, processor cores, epochs an hour."""
    from r23d_jax.checkpoint.checkpoint import create_configured_model
    from r23d_jax.models.complexity import count_parts
    from r23d_jax.runtime.compiled import count_tpu

    frames, size = cfg.data.num_frames, cfg.data.crop_size
    shape = (frames, size, size, cfg.model.in_channels)
    macs = sum(part.macs for part in count_parts(lambda: create_configured_model(cfg, read.num_classes), shape))
    clips, kind = cfg.train.global_batch_size, target.kind
    peak = 3 * 2 * macs * clips / len(target.devices) / kind.peak  # backward is twice forward
    cycles = count_tpu(step.text)["cycles"] if step.text and kind.clock else 0
    seconds = cycles / kind.clock if cycles else peak / utilization
    silent = "the compiler estimates no time" if step.text else "the compiler made no program"
    how = (
        f"the compiler's cycles at {kind.clock / 1e9:g} GHz: {peak / seconds:.0%} of the peak"
        if cycles
        else f"assumed: {utilization:.0%} of the peak (--utilization), because {silent}"
    )
    rate = clips / seconds
    reading = rate / cfg.data.repeats
    print(f"\n{'speed, an estimate':34}")
    print(f"  {'time of a step':32}{seconds * 1e3:>10.1f} ms; {how}")
    print(f"  {'clips a second':32}{rate:>10,.0f}")
    print(f"  {'clips to read a second':32}{reading:>10,.0f}")
    rate_here = 1 / read.seconds_per_clip
    cores = reading * read.seconds_per_clip
    print(f"  {'cores that read them':32}{cores:>10.1f} at {rate_here:,.0f} clips a second")
    epochs = 3600 * rate / (read.num_videos * cfg.data.repeats)
    print(f"  {'epochs an hour':32}{epochs:>10,.1f} of {read.num_videos:,} videos, without evaluations")
    print(f"A core was measured here, on {read.source}.")
    told = {"seconds_per_step": seconds, "estimate": "cycles" if cycles else "utilization", "clips_a_second": rate}
    return told | {"clips_read_a_second": reading, "cores_to_read": cores, "epochs_an_hour": epochs}


def _print_largest(
    cfg: config.Config, target: absent.Absent, compiled: Callable[[config.Config], "Program"]
) -> dict[str, Any]:
    from r23d_jax.training import plan

    def tried(variant: config.Config) -> "Program":
        started = time.monotonic()
        step = compiled(variant)
        clips, needs = variant.train.global_batch_size, f"{step.total / 2**20:,.1f} MiB"
        answer = f"needs {needs}" if step.text else f"finds no room, needs {needs}"
        print(f"  tried {clips:,} clips: {answer}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        return step

    print(f"\n{'largest batch that fits, to 5 %':34}{'clips':>10}{'MiB':>10}", flush=True)
    told, first = [], 0
    for settings in plan.variants(cfg, len(target.devices)):
        found = plan.largest_batch(cfg, target, settings, tried, first)
        first = first or found.batch  # other settings need not begin with the small batch of the config
        words = " ".join(f"--config.{path}={value}" for path, value in settings.items())
        total = found.program.total if found.program else 0
        print(f"  {words or 'as configured':32}{found.batch:>10,}{total / 2**20:>10.1f}", flush=True)
        told.append({"settings": settings, "clips": found.batch, "bytes": total})
    return {"largest": told}
