"""Runs a command, and turns everything that the user can correct into one message without a traceback."""

import os
import select
import sys
import traceback
from collections.abc import Callable

from r23d_jax.commands import requirements
from r23d_jax.config import UserError
from r23d_jax.runtime import distributed
from r23d_jax.runtime.progress import OutputError, printable_output

BROKEN_PIPE = 141  # as of a program that SIGPIPE ends
_TRAINING = (
    "lower config.train.global_batch_size, or set config.train.accumulate, config.parallel.remat=True or "
    "config.parallel.compute_dtype=bfloat16; for an evaluation, lower config.eval.batch_size"
)
_SMALLER = {"train": _TRAINING, "study": _TRAINING, "evaluate": "lower config.eval.batch_size"}
_SMALLER |= dict.fromkeys(("predict", "explain", "features"), "lower --batch-size")


def guarded(command: str, call: Callable[[], int]) -> int:
    """Calls a command, a key of `__main__.COMMANDS`, and returns its exit status, or that of its error."""
    with printable_output():
        try:
            try:
                return call()
            finally:
                sys.stdout.flush()
        except OutputError as error:
            _drop_output()
            return _fail(str(error))
        except UserError as error:
            return _fail(str(error))
        except BrokenPipeError:
            if _end_output():
                return BROKEN_PIPE
            raise  # another pipe
        except KeyboardInterrupt:
            if "jax" in sys.modules:
                distributed.leave_job("interrupted", 130)
            return 130
        except Exception as error:
            if message := requirements.explain(command, error) or _out_of_memory(command, error):
                return _fail(message)
            if "jax" in sys.modules:
                distributed.leave_lost_job(error)
                distributed.leave_job(traceback.format_exc(), 1)
            raise


def _fail(message: str) -> int:
    if "jax" in sys.modules:
        distributed.leave_job(message, 2)
    print(f"error: {message}", file=sys.stderr)
    return 2


def _end_output() -> bool:
    """Whether the reader of the output, e.g. `head`, has ended; nothing more is written then."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    broken = any(events & select.POLLERR for _, events in poll.poll(0))
    if broken:
        _drop_output()
    return broken


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at exit


def _out_of_memory(command: str, error: Exception) -> str | None:
    """A sentence with the fields to change, if an error of jax, TensorFlow or Python means a lack of memory."""
    text = f"{type(error).__name__}: {error}"
    if not any(sign in text for sign in ("RESOURCE_EXHAUSTED", "ResourceExhausted", "MemoryError", "bad_alloc")):
        return None
    return f"out of memory: {_SMALLER.get(command, 'use a machine with more')} ({text.splitlines()[0][:160]})"
