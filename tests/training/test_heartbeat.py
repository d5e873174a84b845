"""The heartbeat between workers that are threads of this process, and early signals."""

import contextlib
import os
import queue
import signal
import socket

import pytest

from swav_tf.training.heartbeat import LOST, Heartbeat, Loss, WorkerLost
from swav_tf.training.rendezvous import Connection, Meeting
from swav_tf.training.stopping import StoppedEarly, stoppable


class Team:
    """Several heartbeats, and the losses that each reports."""

    def __init__(self, workers, timeout_seconds=30.0):
        names = [f"Worker {worker} (gpu{worker})" for worker in range(workers)]
        pairs = {other: socket.socketpair() for other in range(1, workers)}
        self.ends = [
            {other: pair[0] for other, pair in pairs.items()},
            *({0: pair[1]} for pair in pairs.values()),
        ]
        self.losses = [queue.Queue() for _ in range(workers)]
        self.timeout_seconds = timeout_seconds
        self.meetings = [
            Meeting(worker, (), names, {other: Connection(end) for other, end in ends.items()})
            for worker, ends in enumerate(self.ends)
        ]
        self.hearts = {}

    def start(self, *workers):
        for worker in workers or range(len(self.meetings)):
            self.hearts[worker] = Heartbeat(
                self.meetings[worker], timeout_seconds=self.timeout_seconds, on_loss=self.losses[worker].put
            )
        return self

    def loss_of(self, worker):
        return self.losses[worker].get(timeout=60)

    def die(self, worker):
        """Close the connections as the system does for a process that is killed."""
        self.hearts[worker]._left.set()
        for end in self.ends[worker].values():
            end.shutdown(socket.SHUT_RDWR)

    def leave(self):
        for heart in self.hearts.values():
            heart.leave()


# Bugs caught: a death that is noticed only after the time limit, or that is blamed on another worker, or that those who
# have no connection to the dead one never learn.
@pytest.mark.parametrize("dead", [0, 1])
def test_all_others_name_a_worker_that_dies(dead):
    team = Team(3).start()
    team.die(dead)
    for other in {0, 1, 2} - {dead}:
        loss = team.loss_of(other)
        assert (loss.worker, loss.exit_code) == (dead, LOST)
        assert loss.message.startswith(f"Worker {dead} (gpu{dead}) is gone")
    team.leave()


# Bugs caught: a hung worker, or a lost network, whose connections stay open and are waited for forever; no beats.
@pytest.mark.parametrize("silent", [0, 1])
def test_a_silent_worker_is_named_with_the_time(silent):
    team = Team(2, timeout_seconds=1.0).start(1 - silent)
    assert team.meetings[silent].connections[1 - silent].receive() == {}
    loss = team.loss_of(1 - silent)
    text = f"Worker {silent} (gpu{silent}) has sent no heartbeat for 1 s (train.worker_timeout_seconds)"
    assert loss.message.startswith(text)
    assert loss.exit_code == LOST
    team.leave()


# Bug caught: workers that end one after the other, and report each other's good end as a loss.
def test_a_good_end_is_no_loss():
    team = Team(3).start()
    for worker in range(3):
        team.hearts[worker].leave()
        team.die(worker)
    assert not any(heart.lost.wait(0.2) for heart in team.hearts.values())


# Bugs caught: a failure without its reason; an exit code by which a scheduler retries a wrong recipe.
def test_all_learn_the_reason_and_code_of_a_failure():
    team = Team(3).start()
    team.hearts[2].leave(team.hearts[2].failure("The disk is full.", 1))
    for other in (0, 1):
        loss = team.loss_of(other)
        assert loss.message == "Worker 2 (gpu2) failed: The disk is full."
        assert loss.exit_code == WorkerLost(loss).exit_code == 1
        assert "to resume" not in str(WorkerLost(loss))
    team.leave()


# Bug caught: a chain of 'worker 1 failed: worker 2 failed: ...' instead of the first one.
def test_a_loss_is_passed_on_unchanged():
    team = Team(3).start()
    loss = Loss(5, "Worker 5 (gpu05, process 1) is gone.", LOST)
    team.hearts[1].leave(loss)
    assert team.loss_of(0) == team.loss_of(2) == loss
    team.leave()


# === Signals before the first step ===


@pytest.fixture
def handlers_come_back():
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in signals]
    yield
    assert [signal.getsignal(number) for number in signals] == before


# Bug caught: a second SIGTERM, as schedulers send it, that interrupts the clean-up after the first.
def test_a_second_signal_interrupts_nothing(handlers_come_back):
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


# Bugs caught: a closed terminal that ends a run without a checkpoint; one that ends a run started with `nohup`.
@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_stops_unless_it_is_ignored(nohup):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        expected = contextlib.nullcontext() if nohup else pytest.raises(StoppedEarly, match="SIGHUP")
        with expected as caught, stoppable(lambda error: None):
            os.kill(os.getpid(), signal.SIGHUP)
        assert nohup or caught.value.exit_code == 129
    finally:
        signal.signal(signal.SIGHUP, before)


# Bug caught: a signal while the old handlers are put back, which leaves as an unknown exception.
def test_a_signal_at_the_end_stops_nothing(handlers_come_back, monkeypatch):
    put, late = signal.signal, []

    def signalled(number, handler):
        if number == signal.SIGTERM and not late and signal.getsignal(number) is not handler:
            late.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return put(number, handler)

    with stoppable(lambda error: None):
        monkeypatch.setattr(signal, "signal", signalled)
    monkeypatch.undo()
    assert late == [True]
