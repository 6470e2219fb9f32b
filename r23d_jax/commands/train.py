"""Trains or evaluates according to a config file: the commands `train` and `evaluate`, and launch.py.

They use absl's flags instead of argparse, because every field of a config is a flag: --config.<group>.<field>=VALUE.
"""

import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from r23d_jax import config
from r23d_jax.commands.errors import guarded
from r23d_jax.commands.json_output import json_document
from r23d_jax.config.files import call_file
from r23d_jax.runtime import backend, distributed, mirror, program, remote

_USAGE = """--config=NAME_OR_FILE[:ARG] [--workdir=DIR] [overrides]

Any field of the config is set with --config.<group>.<field>=VALUE, e.g. --config.optimizer.learning_rate=0.01;
docs/config.md lists all fields.
"""


def main(argv: list[str], command: str = "") -> int:
    """Trains or evaluates; returns the exit status. A mistake of the user gives one message, without a traceback.

    Args:
      argv: the arguments, without the program's name.
      command: "train" or "evaluate"; "" adds the flag --mode, as launch.py needs.
    """
    return guarded(command or "train", lambda: _run(_parse(argv, command), argv, command))


def _define_flags(values: flags.FlagValues, command: str) -> None:
    flags.DEFINE_string("workdir", "", "folder of the run; default: runs/<config>_<variant>", values)
    if not command:
        modes = ["train", "eval"]
        flags.DEFINE_enum("mode", "train", modes, "train (or resume), or evaluate a checkpoint", values)
    flags.DEFINE_bool("distributed", False, "join the processes of a SLURM, Open MPI, Kubernetes or TPU job", values)
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, to join the others without a cluster", values)
    silence = "seconds after which a silent process counts as lost, and the others end"
    stopped = "exit status of a training that a signal stopped, for a scheduler that restarts it"
    about = "print one JSON object at the end; all else goes to standard error"
    flags.DEFINE_bool("json", False, about, values)
    for name, default, least, about in (
        ("num_processes", None, None, "number of processes of the job; with --coordinator"),
        ("process_id", None, None, "number of this process, from 0; with --coordinator"),
        ("heartbeat_seconds", distributed.HEARTBEAT_SECONDS, 5, silence),
        ("stopped_status", 0, None, stopped),
    ):
        flags.DEFINE_integer(name, default, about, lower_bound=least, flag_values=values)


def parse(argv: list[str], command: str, usage: str, define: Callable[[flags.FlagValues], None]) -> flags.FlagValues:
    """Parses a config with its overrides, and the flags of a command, which are kept apart from absl's global ones.

    Refuses a wrong override with the nearest right name, before absl shows a traceback. The command is a key of
    `__main__.COMMANDS`, or "" for launch.py.
    """
    words = ["", *argv]
    usage = f"{program.command(command or 'train')} {usage}"
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        name = name.lstrip("-").removeprefix("no") if word.startswith("-") else ""
        if name.startswith("config."):
            config.check_override(name)
        elif name == "config" and equals:
            words[place] = f"--config={_check_file(value)}"
        elif name == "config" and place + 1 < len(words):
            words[place + 1] = _check_file(words[place + 1])
    try:
        values = flags.FlagValues()
        about = "a config file, e.g. configs/quickstart.py or r23d.py:34; or its name alone: quickstart, r23d:34"
        config_flags.DEFINE_config_file("config", help_string=about, flag_values=values, sys_argv=words)
        define(values)
        if {"-h", "-help", "--help"} & set(argv):
            others = {"study.py"} | ({"two_stream.py"} if command in ("train", "plan") else set())
            names = {path.name for path in program.CONFIGS.glob("*.py")} - others
            configs = ", ".join(f"configs/{name}" for name in sorted(names))
            print(f"{usage}\nConfigs: {configs}\n{values.get_help()}")
            sys.exit(0)
        rest = values(words)[1:]
    except flags.Error as error:
        raise config.ConfigError(f"{error}\nusage: {usage}") from error
    if rest:
        raise config.ConfigError(
            f"unexpected argument {rest[0]!r}: overrides are written --config.<group>.<field>=VALUE"
        )
    if values.config is None:
        raise config.ConfigError("--config is missing: --config=configs/quickstart.py runs anywhere without a download")
    return values


def _parse(argv: list[str], command: str) -> flags.FlagValues:
    return parse(argv, command, _USAGE, lambda values: _define_flags(values, command))


def _check_file(text: str) -> str:
    """The config file that `text` names. Reports its errors first, because ml_collections would show a traceback."""
    found = program.find_config(text)
    path, colon, variant = found.partition(":")
    call_file(path, "get_config", config.Config, *([variant] if colon else []))
    return found


def _default_workdir(config_file: str) -> str:
    """`runs/r2plus1d_18_flow` for `configs/r2plus1d.py:18,flow`, so that two variants do not share a folder."""
    path, _, variant = config_file.partition(":")
    return "runs/" + "_".join([Path(path).stem, *re.findall(r"[\w.-]+", variant)])


def _run(values: flags.FlagValues, argv: list[str], command: str) -> int:
    cfg = config.validate(values.config)
    place = values.workdir or _default_workdir(config_flags.get_config_filename(values["config"]))
    evaluates = command == "evaluate" or (not command and values.mode == "eval")
    fuses = bool(cfg.fusion.first or cfg.fusion.second)
    if fuses and not evaluates:
        raise config.ConfigError(
            f"config.fusion names trained streams, which can only be evaluated: use {program.command('evaluate')}"
        )

    job = values.coordinator, values.num_processes, values.process_id
    if evaluates and remote.is_remote(place) and (values.distributed or job != ("", None, None)):
        raise config.ConfigError(
            f"--workdir={place}: an evaluation in several processes needs a folder that all of them see, not a URL; "
            "evaluate it in one process"
        )
    backend.prepare_process()
    if values.distributed or job != ("", None, None):
        if not values.distributed:
            distributed.check_flags(*job)
        distributed.join(*job, heartbeat_seconds=values.heartbeat_seconds)
        if evaluates:  # jax holds SIGTERM for a training loop, which polls it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with json_document(values.json and distributed.is_first()) as told, mirror.working(place) as workdir:
        if fuses:
            from r23d_jax.evaluation import two_stream

            result = two_stream.evaluate_two_streams(cfg, workdir)
        elif evaluates:
            from r23d_jax.evaluation.run import evaluate_checkpoint

            result = evaluate_checkpoint(cfg, workdir)
        else:
            from r23d_jax.training import loop

            result = loop.train(cfg, workdir, common=not remote.is_remote(place) or not distributed.several())
        told |= {"workdir": str(place), "finished": result is not None}
        if result is not None:
            told |= result.described() if values.json else {}
            return 0
        if distributed.is_first():
            print(f"continue with: {program.command('train')} {shlex.join(argv)}")
        return values.stopped_status
