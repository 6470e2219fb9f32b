"""Trains or evaluates what a config file describes: the commands `train` and `evaluate`, and launch.py.

They take absl's flags instead of argparse's, because any field of a config is one: --config.<group>.<field>=VALUE.
"""

import shlex
import signal
import sys
import traceback
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from r23d_jax import config
from r23d_jax.commands import requirements
from r23d_jax.config.files import call_file
from r23d_jax.runtime import backend, distributed, program
from r23d_jax.runtime.progress import printable_output

_USAGE = """{command} --config=NAME_OR_FILE[:ARG] [--workdir=DIR] [overrides]

Any field of the config is set with --config.<group>.<field>=VALUE, e.g. --config.optimizer.learning_rate=0.01.
"""


def main(argv: list[str], command: str = "") -> int:
    """Trains or evaluates; returns the exit status. A mistake of the user is one message, without a traceback.

    Args:
      argv: the arguments, without the program's name.
      command: "train" or "evaluate"; "" to ask the flag --mode, as launch.py does.
    """
    usage = _USAGE.format(command=program.command(command or "train"))
    with printable_output():
        try:
            return _run(_parse(argv, command, usage), argv, command)
        except config.UserError as error:
            return _fail(str(error))
        except flags.Error as error:
            return _fail(f"{error}\nusage: {usage}")
        except KeyboardInterrupt:
            if "jax" in sys.modules:
                distributed.leave_job("interrupted", 130)
            return 130
        except Exception as error:
            if missing := requirements.explain(command or "train", error):
                return _fail(missing)
            if "jax" in sys.modules:
                distributed.leave_lost_job(error)
                distributed.leave_job(traceback.format_exc(), 1)
            raise


def _define_flags(argv: list[str], command: str) -> flags.FlagValues:
    """The flags, apart from absl's global ones, so that importing or calling this leaves a process as it was."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        help_string="a config file, e.g. configs/quickstart.py or r23d.py:34; or the name alone: quickstart, r23d:34",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_string("workdir", "", "where the run writes; default: runs/<name of the config file>", values)
    if not command:
        modes = ["train", "eval"]
        flags.DEFINE_enum("mode", "train", modes, "train (resumes by itself), or evaluate the best checkpoint", values)
    flags.DEFINE_bool("distributed", False, "join the processes of a SLURM, Open MPI, Kubernetes or TPU job", values)
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, to join the others without a cluster", values)
    flags.DEFINE_integer("num_processes", None, "of the job; with --coordinator", flag_values=values)
    flags.DEFINE_integer("process_id", None, "of this process, from 0; with --coordinator", flag_values=values)
    flags.DEFINE_integer(
        "heartbeat_seconds",
        distributed.HEARTBEAT_SECONDS,
        "a process not heard of for so long is lost, and the others end",
        lower_bound=5,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "stopped_status",
        0,
        "exit status of a training that a signal stopped, for a scheduler that restarts it",
        flag_values=values,
    )
    return values


def _parse(argv: list[str], command: str, usage: str) -> flags.FlagValues:
    """Parses the flags; a wrong override is refused with the nearest right name before absl shows a traceback."""
    words = ["", *argv]
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        name = name.lstrip("-").removeprefix("no") if word.startswith("-") else ""
        if name.startswith("config."):
            config.check_override(name)
        elif name == "config" and equals:
            words[place] = f"--config={_check_file(value)}"
        elif name == "config" and place + 1 < len(words):
            words[place + 1] = _check_file(words[place + 1])
    values = _define_flags(words, command)
    if {"-h", "-help", "--help"} & set(argv):
        print(f"{usage}\nConfigs: {', '.join(f'configs/{path.name}' for path in sorted(program.CONFIGS.glob('*.py')))}")
        print(values.get_help())
        sys.exit(0)
    rest = values(words)[1:]
    if rest:
        raise config.ConfigError(
            f"unexpected argument {rest[0]!r}: overrides are written --config.<group>.<field>=VALUE"
        )
    if values.config is None:
        raise config.ConfigError("--config is missing: --config=configs/quickstart.py runs anywhere without a download")
    return values


def _check_file(text: str) -> str:
    """The config file that `text` means; ml_collections would show a traceback of what is wrong with it."""
    found = program.find_config(text)
    path, colon, variant = found.partition(":")
    call_file(path, "get_config", config.Config, *([variant] if colon else []))
    return found


def _run(values: flags.FlagValues, argv: list[str], command: str) -> int:
    cfg = config.validate(values.config)
    workdir = Path(values.workdir or f"runs/{Path(config_flags.get_config_filename(values['config'])).stem}")
    evaluates = command == "evaluate" or (not command and values.mode == "eval")

    backend.prepare_process()
    place = values.coordinator, values.num_processes, values.process_id
    if values.distributed or place != ("", None, None):
        if not values.distributed:
            distributed.check_flags(*place)
        distributed.join(*place, heartbeat_seconds=values.heartbeat_seconds)
        if evaluates:  # jax keeps SIGTERM for a training loop that asks for it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if evaluates and (cfg.fusion.first or cfg.fusion.second):
        from r23d_jax.evaluation import two_stream

        two_stream.evaluate_two_streams(cfg, workdir)
    elif evaluates:
        from r23d_jax.evaluation.run import evaluate_checkpoint

        evaluate_checkpoint(cfg, workdir)
    else:
        from r23d_jax.training import loop

        if loop.train(cfg, workdir) is None:
            if distributed.is_first():
                print(f"continue with: {program.command('train')} {shlex.join(argv)}")
            return values.stopped_status
    return 0


def _fail(message: str) -> int:
    if "jax" in sys.modules:
        distributed.leave_job(message, 2)
    print(f"error: {message}", file=sys.stderr)
    return 2
