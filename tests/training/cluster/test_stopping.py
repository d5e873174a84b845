"""Signals before the first step, in this process."""

import os
import signal

import pytest

from swav_tf.training.stopping import StoppedEarly, stoppable


@pytest.fixture(autouse=True)
def handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


# Bug caught: a second SIGTERM, as schedulers send it, that cuts the clean-up of the first one short.
def test_a_second_signal_interrupts_nothing():
    cleaned = []

    def stopped_twice():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(StoppedEarly, match="SIGTERM") as caught, stoppable(lambda error: None):
        stopped_twice()
    assert cleaned == [True]
    assert caught.value.exit_code == 143


# Bug caught: a signal in the last moment that leaves as an exception nobody knows.
def test_what_has_ended_is_not_stopped(monkeypatch):
    put, late = signal.signal, []

    def signalled(number, handler):
        if (
            number == signal.SIGTERM
            and not late
            and handler is not None
            and signal.getsignal(number) is not handler
        ):
            late.append(True)
            os.kill(os.getpid(), signal.SIGTERM)  # while the old handlers are put back
        return put(number, handler)

    with stoppable(lambda error: None):
        monkeypatch.setattr(signal, "signal", signalled)
    monkeypatch.undo()
    assert late == [True]
