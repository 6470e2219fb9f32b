"""A signal asks for a stop; a second Ctrl-C forces one."""

import hashlib
import os
import signal
import threading
import time

import pytest

from r23d_jax.training.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_a_request(number: signal.Signals) -> None:
    lines: list[str] = []
    before = signal.getsignal(number)
    with StopRequest(lines.append) as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert lines == [f"{number.name}: finishing this step, then saving (Ctrl-C again stops without saving)"]
    assert signal.getsignal(number) is before


def test_second_interrupt_is_immediate() -> None:
    with StopRequest(lambda line: None):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_is_answered_while_the_main_thread_is_in_c_code() -> None:
    """As while jax compiles: Python runs no handler before that ends."""
    answered = []
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    with StopRequest(lambda line: answered.append(time.monotonic())) as stop:
        timer.start()
        data = b"x" * 1000
        hashlib.pbkdf2_hmac("sha256", data, data, 4_000_000)  # one call of some seconds, which releases the lock
        ended = time.monotonic()
        assert stop.requested
    assert answered and answered[0] < ended - 0.2
