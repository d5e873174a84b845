"""The heartbeat between workers that are threads of this process, the exchange of ports, and early signals."""

import contextlib
import json
import os
import queue
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from swav_tf.plumbing.errors import UsageError
from swav_tf.training import watched
from swav_tf.training.heartbeat import LOST, Heartbeat, Loss, WorkerLost
from swav_tf.training.stopping import StoppedEarly, stoppable


class Team:
    """Several heartbeats and the losses that each reports."""

    def __init__(self, workers, timeout_seconds=30.0):
        self.losses = [queue.Queue() for _ in range(workers)]
        self.hearts = [
            Heartbeat(worker=w, timeout_seconds=timeout_seconds, on_loss=self.losses[w].put)
            for w in range(workers)
        ]

    def start(self):
        addresses = [("127.0.0.1", heart.port) for heart in self.hearts]
        with ThreadPoolExecutor(len(addresses)) as pool:
            list(pool.map(lambda heart: heart.start(addresses), self.hearts))
        return self

    def loss_of(self, worker):
        return self.losses[worker].get(timeout=60)

    def leave(self):
        for heart in self.hearts:
            heart.leave()


def die(heart):
    """Close the connections as the system does for a process that is killed."""
    heart._left.set()
    for connection in heart._connections.values():
        with contextlib.suppress(OSError):  # the other end has left already
            connection.shutdown(socket.SHUT_RDWR)


# Bugs caught: a death that is noticed only after the time limit, or that is blamed on another worker.
def test_all_others_name_a_worker_that_dies():
    team = Team(3).start()
    die(team.hearts[1])
    for other in (0, 2):
        loss = team.loss_of(other)
        assert (loss.worker, loss.exit_code) == (1, LOST)
        assert f"Worker 1 ({socket.gethostname()}, process {os.getpid()}) is gone" in loss.message
    team.leave()


# Bug caught: a hung worker, or a lost network, whose connections stay open and are waited for forever.
def test_a_silent_worker_is_named_with_the_time():
    team = Team(1, timeout_seconds=1.0)
    silent = socket.create_server(("127.0.0.1", 0))
    addresses = [("127.0.0.1", team.hearts[0].port), ("127.0.0.1", silent.getsockname()[1])]
    connection = socket.create_connection(addresses[0])
    hello = {"worker": 1, "key": json.dumps([port for _, port in addresses]), "name": "Worker 1 (gpu02)"}
    connection.sendall((json.dumps(hello) + "\n").encode())
    team.hearts[0].start(addresses)
    loss = team.loss_of(0)
    assert loss.message.startswith("Worker 1 (gpu02) has been silent for 1 s (train.worker_timeout_seconds)")
    assert loss.exit_code == LOST
    team.leave()


# Bug caught: workers that end one after the other, and report each other's good end as a loss.
def test_a_good_end_is_no_loss():
    team = Team(3).start()
    for heart in team.hearts:
        heart.leave()
        die(heart)
    assert not any(heart.lost.wait(0.2) for heart in team.hearts)
    assert all(losses.empty() for losses in team.losses)


# Bugs caught: a failure without its reason; an exit code by which a scheduler retries a wrong recipe.
def test_all_learn_the_reason_and_code_of_a_failure():
    team = Team(3).start()
    team.hearts[2].leave(team.hearts[2].failure("The disk is full.", 1))
    for other in (0, 1):
        loss = team.loss_of(other)
        assert loss.message.startswith("Worker 2 (")
        assert loss.message.endswith("failed: The disk is full.")
        assert loss.exit_code == WorkerLost(loss).exit_code == 1
        assert "to resume" not in str(WorkerLost(loss))
    team.leave()


# Bug caught: a chain of 'worker 1 failed: worker 2 failed: ...' instead of the first one.
def test_a_loss_is_passed_on_unchanged():
    team = Team(2).start()
    loss = Loss(5, "Worker 5 (gpu05, process 1) is gone.", LOST)
    team.hearts[1].leave(loss)
    assert team.loss_of(0) == loss
    team.leave()


# Bug caught: a port scan, or a worker of an earlier run, that is taken for a member or ends the start.
def test_strangers_are_refused():
    team = Team(2)
    old = json.dumps({"worker": 1, "key": "old", "name": ""}).encode() + b"\n"
    for words in (b"GET / HTTP/1.1\n", b"[1]\n", old):
        socket.create_connection(("127.0.0.1", team.hearts[0].port)).sendall(words)
    team.start()
    team.leave()
    assert all(losses.empty() for losses in team.losses)


# Bug caught: a firewall between the machines that leaves the run without a heartbeat, or waiting.
def test_a_worker_that_cannot_be_reached_ends_the_start(port):
    heart = Heartbeat(worker=1, timeout_seconds=0.3, on_loss=lambda loss: None)
    message = r"Worker 0 could not be reached at 127.0.0.1, port \d+, within 0.3 s"
    with pytest.raises(WorkerLost, match=message):
        heart.start([("127.0.0.1", port), ("127.0.0.1", heart.port)])


# Bug caught: one worker without a heartbeat, whose next message the others take for its port.
@pytest.mark.parametrize("ports", [(5000, 65535, 1024), (0, 0, 0), (5000, 0, 1024)])
def test_a_heartbeat_of_some_workers_is_refused_by_all(monkeypatch, ports):
    def mean(strategy, own):
        assert own == [0, ports[1], 0]
        return [port / 3 for port in ports]

    monkeypatch.setattr(watched, "mean_over_workers", mean)
    team = SimpleNamespace(workers=3, worker=1)
    if ports == (5000, 0, 1024):
        with pytest.raises(UsageError, match=r"on all workers or on none. Received: 0 on worker\(s\) 1 of 3"):
            watched.exchange_ports(None, team, ports[1])
    else:
        assert watched.exchange_ports(None, team, ports[1]) == list(ports)


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
