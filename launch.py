"""Trains or evaluates: python launch.py --config=configs/r23d.py [--workdir=DIR] [--mode=train|eval] [overrides].

Any field of the config is set with --config.<group>.<field>=VALUE, e.g. --config.optimizer.learning_rate=0.01.
"""

import shlex
import signal
import sys
import traceback
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from r23d_jax import config
from r23d_jax.config.files import call_file
from r23d_jax.runtime import backend, distributed
from r23d_jax.runtime.progress import printable_output

CONFIG = config_flags.DEFINE_config_file("config", help_string="config file, e.g. configs/quickstart.py or r23d.py:34")
WORKDIR = flags.DEFINE_string("workdir", "", "where the run writes; default: runs/<name of the config file>")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "train (resumes by itself), or evaluate the best checkpoint"
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "join the other processes of a SLURM, Open MPI, Kubernetes or Cloud TPU job"
)
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, to join the others without a cluster")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "of the job; with --coordinator")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "of this process, from 0; with --coordinator")
HEARTBEAT_SECONDS = flags.DEFINE_integer(
    "heartbeat_seconds", 30, "a process not heard of for so long is lost, and the others end", lower_bound=5
)
STOPPED_STATUS = flags.DEFINE_integer(
    "stopped_status", 0, "exit status of a training that a signal stopped, for a scheduler that is to start it again"
)


def main(argv: list[str]) -> int:
    """Hands over to the training loop; returns the exit status."""
    if len(argv) > 1:
        raise config.ConfigError(
            f"unexpected argument {argv[1]!r}: overrides are written --config.<group>.<field>=VALUE"
        )
    if CONFIG.value is None:
        raise config.ConfigError("--config is missing: --config=configs/quickstart.py runs anywhere without a download")
    cfg = config.validate(CONFIG.value)
    source = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = Path(WORKDIR.value or f"runs/{Path(source).stem}")

    backend.prepare_process()
    place = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    if DISTRIBUTED.value or place != ("", None, None):
        if not DISTRIBUTED.value:
            distributed.check_flags(*place)
        distributed.join(*place, heartbeat_seconds=HEARTBEAT_SECONDS.value)
        if MODE.value == "eval":  # jax keeps SIGTERM for a training loop that asks for it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from r23d_jax.training import loop

    if MODE.value == "eval" and (cfg.fusion.first or cfg.fusion.second):
        from r23d_jax.evaluation import two_stream

        two_stream.evaluate_two_streams(cfg, workdir)
    elif MODE.value == "eval":
        from r23d_jax.evaluation.run import evaluate_checkpoint

        evaluate_checkpoint(cfg, workdir)
    elif loop.train(cfg, workdir) is None:
        if distributed.is_first():
            print(f"continue with: {shlex.join([Path(sys.executable).name, *sys.argv])}")
        return STOPPED_STATUS.value
    return 0


def parse(argv: list[str]) -> list[str]:
    """Parses flags; a wrong override is refused with the nearest right name before absl would show a traceback."""
    if {"-h", "-help", "--help"} & set(argv[1:]):
        print(f"{__doc__}\nConfigs: {', '.join(str(path) for path in sorted(Path('configs').glob('*.py')))}")
        print(flags.FLAGS.main_module_help())
        sys.exit(0)
    for arg, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        name = arg.lstrip("-").partition("=")[0].removeprefix("no")
        if arg.startswith("-") and name.startswith("config."):
            config.check_override(name)
        elif arg.startswith("-") and name == "config":
            path, colon, variant = (arg.partition("=")[2] if "=" in arg else following).partition(":")
            # ml_collections runs the file once more, and would show a traceback of what is wrong with it
            call_file(path, "get_config", config.Config, *([variant] if colon else []))
    return flags.FLAGS(argv)


def run() -> None:
    """Runs main; what the user can put right is one message without a traceback, exit status 2."""
    with printable_output():
        try:
            sys.exit(main(parse(sys.argv)))
        except config.UserError as error:
            if "jax" in sys.modules:
                distributed.leave_job(str(error), 2)
            sys.exit(_complain(str(error)))
        except flags.Error as error:
            sys.exit(_complain(f"{error}\n{__doc__}"))
        except KeyboardInterrupt:
            if "jax" in sys.modules:
                distributed.leave_job("interrupted", 130)
            sys.exit(130)
        except Exception as error:
            if "jax" in sys.modules:
                distributed.leave_lost_job(error)
                distributed.leave_job(traceback.format_exc(), 1)
            raise


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    run()
