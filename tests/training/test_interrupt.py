"""A signal asks for a stop; a second Ctrl-C forces one."""

import os
import signal

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


def test_a_signal_in_the_middle_of_a_print_is_a_request_all_the_same() -> None:
    def busy(line: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    with StopRequest(busy) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
