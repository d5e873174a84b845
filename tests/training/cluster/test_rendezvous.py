import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from swav_tf.plumbing.errors import SwavError, UsageError
from swav_tf.training.rendezvous import ClusterAddress, join_address, meet


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
        lists = list(pool.map(lambda r: meet(ClusterAddress(3, r, master), timeout_seconds=30), (2, 0, 1)))
    assert lists[0] == lists[1] == lists[2]
    assert len(set(lists[0])) == 3
    assert all(worker.startswith("127.0.0.1:") for worker in lists[0])


# Bug caught: a wait without end, or an error that does not say who is missing.
def test_missing_nodes_are_named(port):
    address = ClusterAddress(3, 0, f"127.0.0.1:{port}")
    with pytest.raises(SwavError, match="node rank 1, 2") as error:
        meet(address, timeout_seconds=0.3)
    assert error.value.exit_code == 75  # they may come the next time


# Bug caught: a node 0 that comes late or is out of reach, told to the scheduler as a failure for good.
def test_no_node_0_is_told_as_something_to_try_again(port):
    address = ClusterAddress(2, 1, f"127.0.0.1:{port}")
    with pytest.raises(SwavError, match="Node 0 did not answer") as error:
        meet(address, timeout_seconds=0.3)
    assert error.value.exit_code == 75


# Bug caught: a node 0 that is killed, told as one that turned this node away, and as a failure for good.
def test_a_node_0_that_is_lost_is_no_refusal():
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        one = pool.submit(
            meet, ClusterAddress(2, 1, f"127.0.0.1:{server.getsockname()[1]}"), timeout_seconds=60
        )
        killed, _ = server.accept()
        killed.makefile("r").readline()
        killed.shutdown(socket.SHUT_RDWR)
        killed.close()
        with pytest.raises(SwavError, match="was lost while this node") as error:
            one.result()
    assert error.value.exit_code == 75


# Bugs caught: two nodes of one rank that train apart; a node that is turned away without a reason, or with a code by
# which a scheduler tries it again.
def test_two_nodes_of_one_rank_are_refused(port):
    master = f"127.0.0.1:{port}"
    with ThreadPoolExecutor(3) as pool:
        zero = pool.submit(meet, ClusterAddress(3, 0, master), timeout_seconds=20)
        ones = [pool.submit(meet, ClusterAddress(3, 1, master), timeout_seconds=20) for _ in range(2)]
        with pytest.raises(UsageError, match="its own --node-rank"):
            zero.result()
        for one in ones:
            with pytest.raises(
                UsageError, match=r"turned this node \(rank 1 of 3\) away: .*its own --node-rank"
            ):
                one.result()


# Bug caught: an IPv6 address whose colons are taken for the port's.
@pytest.mark.parametrize(
    ("master", "host", "port"),
    [("node07:9000", "node07", 9000), ("10.0.0.1:1", "10.0.0.1", 1), ("[fd00::1]:9000", "fd00::1", 9000)],
)
def test_addresses(master, host, port):
    address = ClusterAddress(2, 0, master)
    assert (address.host, address.port) == (host, port)
    assert join_address(host, port) == master


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_nodes_meet_over_ipv6(port):
    master = f"[::1]:{port}"
    with ThreadPoolExecutor(2) as pool:
        lists = list(pool.map(lambda r: meet(ClusterAddress(2, r, master), timeout_seconds=30), (1, 0)))
    assert lists[0] == lists[1]
    assert all(worker.startswith("[::1]:") for worker in lists[0])


# Bug caught: a node that was started again while others were still missing, and is taken for a second one of its rank.
def test_a_node_that_was_started_again_takes_its_place(port):
    def say_hello(worker_port):
        hello = json.dumps({"rank": 1, "port": worker_port, "nodes": 3}) + "\n"
        while True:
            try:
                node = socket.create_connection(("127.0.0.1", port))
            except OSError:  # node 0 does not listen yet
                time.sleep(0.05)
                continue
            node.sendall(hello.encode())
            return node

    # Node 0 takes connections in the order in which they were made; node 2 comes last.
    with ThreadPoolExecutor(2) as pool:
        zero = pool.submit(meet, ClusterAddress(3, 0, f"127.0.0.1:{port}"), timeout_seconds=30)
        say_hello(5).close()
        with say_hello(6) as again:
            two = pool.submit(meet, ClusterAddress(3, 2, f"127.0.0.1:{port}"), timeout_seconds=30)
            assert zero.result() == two.result() == json.loads(again.makefile("r").readline())
    assert zero.result()[1] == "127.0.0.1:6"


# Bug caught: a port that another job has, told as if the nodes did not come.
def test_a_port_that_is_taken_is_told():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SwavError, match=f"listen at port {port}.*Another job may use it"):
            meet(ClusterAddress(2, 0, f"127.0.0.1:{port}"), timeout_seconds=5)


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
