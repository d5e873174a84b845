import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from swav_tf.plumbing.errors import SwavError, UsageError
from swav_tf.training import rendezvous
from swav_tf.training.rendezvous import (
    ClusterAddress,
    join_address,
    meet,
    slurm_address,
    slurm_tasks,
    split_address,
)

# Task 2 of `srun --nodes=4 --ntasks-per-node=1 --gpus-per-node=8`, by srun's manual ('OUTPUT ENVIRONMENT VARIABLES').
FOUR_NODES = {
    "SLURM_JOB_ID": "4211",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[09-11,17]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_GPUS_PER_NODE": "8",
    "SLURM_DISTRIBUTION": "cyclic",
}


# === SLURM ===


# Bugs caught: a rank of another task; a master that is not task 0's node; node10 before node9.
@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[09-11,17]", "gpu09"),
        ("node9,node10", "node9"),
        ("a[1-2]b[08-10],c", "a1b08"),
        ("login-1,gpu-a100-[098-101]", "login-1"),
        ("single", "single"),
        ("n[3]-ib", "n3-ib"),
    ],
)
def test_a_step_is_a_cluster(nodes, first):
    address = slurm_address(FOUR_NODES | {"SLURM_STEP_NODELIST": nodes}, has_gpus=True)
    host, _ = split_address(address.master)
    assert (address.nodes, address.node_rank, host) == (4, 2, first)


@pytest.mark.parametrize("nodes", ["", "gpu[01-", "gpu[a-b]", "gpu[]", ",gpu1", "gpu]1["])
def test_a_wrong_node_list_is_refused(nodes):
    with pytest.raises(UsageError, match="SLURM_STEP_NODELIST must"):
        slurm_address(FOUR_NODES | {"SLURM_STEP_NODELIST": nodes}, has_gpus=True)


# Bug caught: two jobs, or two steps of one job, that meet at one port of a node they share.
def test_the_port_follows_from_job_and_step():
    addresses = [
        slurm_address(FOUR_NODES | {"SLURM_JOB_ID": job, "SLURM_STEP_ID": step}, has_gpus=True)
        for job in ("4211", "4212", "4213")
        for step in ("0", "1")
    ]
    ports = {split_address(address.master)[1] for address in addresses}
    assert len(ports) == 6
    assert all(20_000 <= port < 32_000 for port in ports)
    masters = {slurm_address(FOUR_NODES | {"SLURM_PROCID": str(r)}, has_gpus=True).master for r in range(4)}
    assert len(masters) == 1


# Bugs caught: eight workers of a node that each take all of its eight GPUs; a variable about CPUs that permits it.
@pytest.mark.parametrize("counts", ["8(x4)", "1,8(x3),7"])
def test_tasks_that_would_share_gpus_are_refused(counts):
    eight = FOUR_NODES | {"SLURM_STEP_NUM_TASKS": "32", "SLURM_STEP_TASKS_PER_NODE": counts}
    cpus = {"SLURM_TRES_PER_TASK": "cpu=8"}  # of --cpus-per-task
    for shared in ({}, cpus, {"SLURM_GPU_BIND": "none"}, {"SLURM_GPU_BIND": "verbose,none"}):
        with pytest.raises(UsageError, match=r"8 tasks of a node would share them.*--ntasks-per-node=1"):
            slurm_address(eight | shared, has_gpus=True)
    assert slurm_address(eight, has_gpus=False).nodes == 32
    own = {"SLURM_TRES_PER_TASK": "cpu=8,gres/gpu=1"}
    for given in ({"SLURM_GPUS_PER_TASK": "1"}, own, {"SLURM_GPU_BIND": "map:0,1"}):
        assert slurm_address(eight | given, has_gpus=True).nodes == 32


def test_an_arbitrary_distribution_is_refused():
    with pytest.raises(UsageError, match="arbitrary"):
        slurm_address(FOUR_NODES | {"SLURM_DISTRIBUTION": "arbitrary"}, has_gpus=True)


# Bug caught: an interactive shell in an allocation that waits for tasks that never come.
def test_only_a_task_of_srun_counts():
    assert slurm_tasks({"SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "node[1-4]"}) == 0
    assert slurm_tasks(FOUR_NODES) == 4


# === Meeting ===


# Bugs caught: lists that differ between nodes, ranks out of order, a stranger who breaks the meeting.
def test_all_nodes_get_the_same_list_by_rank(port):
    master = f"127.0.0.1:{port}"

    def knock():
        for _ in range(50):
            try:
                socket.create_connection(("127.0.0.1", port)).sendall(b"GET / HTTP/1.1\n")
                return
            except OSError:
                time.sleep(0.05)

    with ThreadPoolExecutor(4) as pool:
        pool.submit(knock)
        found = list(pool.map(lambda r: meet(ClusterAddress(3, r, master), timeout_seconds=30), (2, 0, 1)))
    assert [meeting.rank for meeting in found] == [2, 0, 1]
    assert [set(meeting.connections) for meeting in found] == [{0}, {1, 2}, {0}]
    assert len({(meeting.workers, meeting.names) for meeting in found}) == 1
    assert len(set(found[0].workers)) == 3
    assert all(worker.startswith("127.0.0.1:") for worker in found[0].workers)
    assert [name.partition(" (")[0] for name in found[0].names] == ["Worker 0", "Worker 1", "Worker 2"]


# Bugs caught: a wait without end, an error that names no node, an exit code that means a final failure.
@pytest.mark.parametrize(("rank", "message"), [(0, "node rank 1, 2"), (1, "Node 0 did not answer")])
def test_missing_nodes_are_named(port, rank, message):
    with pytest.raises(SwavError, match=message) as error:
        meet(ClusterAddress(3, rank, f"127.0.0.1:{port}"), timeout_seconds=0.3)
    assert error.value.exit_code == 75


# Bug caught: a node 0 that is killed, reported as a refusal.
def test_a_lost_node_0_is_no_refusal():
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        address = ClusterAddress(2, 1, f"127.0.0.1:{server.getsockname()[1]}")
        one = pool.submit(meet, address, timeout_seconds=60)
        killed, _ = server.accept()
        killed.makefile("r").readline()
        killed.shutdown(socket.SHUT_RDWR)
        killed.close()
        with pytest.raises(SwavError, match="was lost while this node") as error:
            one.result()
    assert error.value.exit_code == 75


# Bugs caught: two nodes of one rank that train apart; a refusal without a reason, or with a code that means 'retry'.
def test_two_nodes_of_one_rank_are_refused(port):
    master = f"127.0.0.1:{port}"
    with ThreadPoolExecutor(3) as pool:
        zero = pool.submit(meet, ClusterAddress(3, 0, master), timeout_seconds=20)
        ones = [pool.submit(meet, ClusterAddress(3, 1, master), timeout_seconds=20) for _ in range(2)]
        with pytest.raises(UsageError, match="its own --node-rank"):
            zero.result()
        for one in ones:
            with pytest.raises(UsageError, match=r"refused this node \(rank 1 of 3\): .*its own --node-rank"):
                one.result()


# Bugs caught: a node that was started again while others were missing, taken for a second one of its rank; or counted as
# present while it is gone, so that the others start without it.
@pytest.mark.parametrize("last", [1, 2])
def test_a_restarted_node_takes_its_place(port, last):
    def say_hello(worker_port):
        hello = json.dumps({"rank": 1, "port": worker_port, "nodes": 3, "name": "x"}) + "\n"
        while True:
            try:
                node = socket.create_connection(("127.0.0.1", port))
            except OSError:  # node 0 does not listen yet
                time.sleep(0.05)
                continue
            node.sendall(hello.encode())
            return node

    # Node 0 accepts connections in the order in which they were made.
    with ThreadPoolExecutor(2) as pool:
        zero = pool.submit(meet, ClusterAddress(3, 0, f"127.0.0.1:{port}"), timeout_seconds=30)
        say_hello(5).close()
        meet_two = partial(pool.submit, meet, ClusterAddress(3, 2, f"127.0.0.1:{port}"), timeout_seconds=30)
        two = meet_two() if last == 1 else None
        time.sleep(0.3 if two else 0)
        with say_hello(6) as again:
            two = two or meet_two()
            answer = json.loads(again.makefile("r").readline())
    assert zero.result().workers == two.result().workers == tuple(answer["workers"])
    assert zero.result().workers[1] == "127.0.0.1:6"


# Bug caught: a node that waits for others and shows nothing.
def test_all_that_wait_log_who_is_missing(port, monkeypatch, logged):
    monkeypatch.setattr(rendezvous, "NOTICE_SECONDS", 0.05)

    def join(rank):
        return meet(ClusterAddress(4, rank, f"127.0.0.1:{port}"), timeout_seconds=60)

    def wait_for(text, times):
        while logged.count(("INFO", text)) < times:
            time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        lists = [pool.submit(join, 2)]
        while not any(text.startswith(f"Waiting for node 0 at 127.0.0.1:{port}") for _, text in logged):
            time.sleep(0.01)
        lists.append(pool.submit(join, 0))
        wait_for("Waiting for node rank 1, 3 to start.", 2)  # node 0, and node 2, which has come
        lists.append(pool.submit(join, 1))
        wait_for("Waiting for node rank 3 to start.", 3)
        lists.append(pool.submit(join, 3))
        assert len({found.result().workers for found in lists}) == 1


def test_an_occupied_port_is_reported():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SwavError, match=f"listen at port {port}.*Another job may use it"):
            meet(ClusterAddress(2, 0, f"127.0.0.1:{port}"), timeout_seconds=5)


# === Addresses ===


# Bug caught: an IPv6 address whose colons are taken for the port's.
@pytest.mark.parametrize(
    ("master", "host", "port"),
    [("node07:9000", "node07", 9000), ("10.0.0.1:1", "10.0.0.1", 1), ("[fd00::1]:9000", "fd00::1", 9000)],
)
def test_addresses(master, host, port):
    assert split_address(ClusterAddress(2, 0, master).master) == (host, port)
    assert join_address(host, port) == master


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_nodes_meet_over_ipv6(port):
    master = f"[::1]:{port}"
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda r: meet(ClusterAddress(2, r, master), timeout_seconds=30), (1, 0))
    assert one.workers == other.workers
    assert all(worker.startswith("[::1]:") for worker in one.workers)


@pytest.mark.parametrize(
    ("nodes", "rank", "master", "message"),
    [
        (2, 2, "a:1", "node-rank"),
        (0, 0, "a:1", "node-rank"),
        (2, 0, "a", "host:port"),
        (2, 0, "a:x", "host:port"),
        (2, 0, "a:0", "host:port"),
        (2, 0, "a:65536", "host:port"),
        (2, 0, "fd00::1:9000", r"\[fd00::1\]:9000"),
        (2, 0, "[fd00::1]", "host:port"),
    ],
)
def test_a_bad_address_is_refused(nodes, rank, master, message):
    with pytest.raises(UsageError, match=message):
        ClusterAddress(nodes, rank, master)
