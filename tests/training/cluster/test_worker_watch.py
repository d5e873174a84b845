"""The watch between workers, without TensorFlow: workers are threads of this process."""

import contextlib
import json
import queue
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from swav_tf.training.heartbeat import LOST, Loss, WorkerLost, WorkerWatch


class Team:
    """Started watches and what each tells."""

    def __init__(self, workers, timeout_seconds=30.0):
        self.told = [queue.Queue() for _ in range(workers)]
        self.watches = [
            WorkerWatch(worker=w, timeout_seconds=timeout_seconds, on_loss=self.told[w].put)
            for w in range(workers)
        ]

    def start(self):
        addresses = [("127.0.0.1", watch.port) for watch in self.watches]
        with ThreadPoolExecutor(len(addresses)) as pool:
            list(pool.map(lambda watch: watch.start(addresses), self.watches))
        return self

    def loss_of(self, worker):
        return self.told[worker].get(timeout=60)

    def leave(self):
        for watch in self.watches:
            watch.leave()


def die(watch):
    """What the system does with the connections of a process that is killed."""
    watch._left.set()
    for connection in watch._connections.values():
        with contextlib.suppress(OSError):  # the other end has gone already
            connection.shutdown(socket.SHUT_RDWR)


# Bugs caught: a death that nobody notices before the time is over, or that is blamed on another worker.
def test_a_worker_that_dies_is_named_by_all_others():
    team = Team(3).start()
    die(team.watches[1])
    for other in (0, 2):
        loss = team.loss_of(other)
        assert (loss.worker, loss.exit_code) == (1, LOST)
        assert f"Worker 1 ({socket.gethostname()}, process " in loss.message
        assert "is gone" in loss.message
    team.leave()


# Bug caught: a hung worker, or a lost network, that keeps its connections open and is waited for without end.
def test_a_silent_worker_is_named_with_the_time():
    team = Team(1, timeout_seconds=1.0)
    silent = socket.create_server(("127.0.0.1", 0))
    addresses = [("127.0.0.1", team.watches[0].port), ("127.0.0.1", silent.getsockname()[1])]
    connection = socket.create_connection(addresses[0])
    key = json.dumps([port for _, port in addresses])
    connection.sendall((json.dumps({"worker": 1, "key": key, "name": "gpu02, process 7"}) + "\n").encode())
    team.watches[0].start(addresses)
    loss = team.loss_of(0)
    assert loss.message.startswith(
        "Worker 1 (gpu02, process 7) has been silent for 1 s (train.worker_timeout_seconds)"
    )
    assert loss.exit_code == LOST
    team.leave()


# Bug caught: workers that end one after the other, all being well, and take each other's end for a loss.
def test_a_good_end_is_no_loss():
    team = Team(3).start()
    for watch in team.watches:
        watch.leave()
        die(watch)
    assert all(told.empty() for told in team.told)
    assert not any(watch.lost.wait(0.2) for watch in team.watches)


# Bugs caught: 'another worker has ended' without a reason; an exit code that asks a scheduler to try a wrong recipe again.
def test_a_failure_is_told_to_all_with_its_reason_and_code():
    team = Team(3).start()
    team.watches[2].leave(team.watches[2].failure("The disk is full.", 1))
    for other in (0, 1):
        loss = team.loss_of(other)
        assert loss.message.startswith("Worker 2 (")
        assert loss.message.endswith("failed: The disk is full.")
        assert loss.exit_code == WorkerLost(loss).exit_code == 1
        assert "to go on" not in str(WorkerLost(loss))
    team.leave()


# Bug caught: a chain of 'worker 1 failed: worker 2 failed: ...' instead of who was first.
def test_a_loss_is_passed_on_as_it_is():
    team = Team(2).start()
    loss = Loss(5, "Worker 5 (gpu05, process 1) is gone.", LOST)
    team.watches[1].leave(loss)
    assert team.loss_of(0) == loss
    team.leave()


# Bug caught: a port scan, or a worker of an earlier run, that is taken for a member or stops the start.
def test_strangers_are_turned_away():
    team = Team(2)
    port = team.watches[0].port
    for words in (
        b"GET / HTTP/1.1\n",
        b"[1]\n",
        json.dumps({"worker": 1, "key": "old", "name": ""}).encode() + b"\n",
    ):
        stranger = socket.create_connection(("127.0.0.1", port))
        stranger.sendall(words)
    team.start()
    team.leave()
    assert all(told.empty() for told in team.told)


# Bug caught: a firewall between the machines that leaves the run unwatched, or waiting, without a word.
def test_a_worker_that_cannot_be_reached_ends_the_start(port):
    watch = WorkerWatch(worker=1, timeout_seconds=0.3, on_loss=lambda loss: None)
    with pytest.raises(
        WorkerLost, match=r"Worker 0 could not be reached at 127.0.0.1, port \d+, within 0.3 s"
    ):
        watch.start([("127.0.0.1", port), ("127.0.0.1", watch.port)])
