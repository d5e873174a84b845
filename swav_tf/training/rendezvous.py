"""How the nodes of a cluster find each other. No TensorFlow.

TensorFlow's SlurmClusterResolver is not used: it needs nvidia-smi, gives every job the same ports, and cannot read
node names with several brackets.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from swav_tf.plumbing.errors import SwavError, TransientError, UsageError
from swav_tf.plumbing.log import log

# Below the ports that Linux gives to outgoing connections (from 32768).
FIRST_PORT, PORTS = 20_000, 12_000
NOTICE_SECONDS = 3.0  # after which a node that waits logs for whom
HELLO_SECONDS = 10.0  # in which a node that has connected must introduce itself


@dataclass(frozen=True)
class ClusterAddress:
    """The place of this node in a cluster."""

    nodes: int  # one worker process each
    node_rank: int  # this node's number, 0 <= node_rank < nodes
    master: str  # `host:port` of node 0, reachable from all nodes

    def __post_init__(self) -> None:
        if self.nodes < 1 or not 0 <= self.node_rank < self.nodes:
            raise UsageError(
                f"--node-rank must be from 0 to nodes - 1. Received: --nodes {self.nodes} "
                f"--node-rank {self.node_rank}."
            )
        try:
            split_address(self.master)
        except ValueError as error:
            raise UsageError(
                "--master must be host:port, such as 10.0.0.1:9000, node07:9000 or [fd00::1]:9000. "
                f"Received: {self.master!r} ({error})."
            ) from error


# === Environment ===


def described_workers(environment: Mapping[str, str]) -> int:
    """Return the number of workers that TF_CONFIG or SLURM describes; 0 if neither does."""
    return max(len(tf_config_workers(environment)[0]), slurm_tasks(environment))


def tf_config_workers(environment: Mapping[str, str]) -> tuple[Sequence[str], int]:
    """Return the addresses of the workers in TF_CONFIG, and the number of this one; none without it."""
    text = environment.get("TF_CONFIG") or "{}"
    try:
        described = json.loads(text)
        members, task = described.get("cluster", {}), described.get("task", {})
        if not members:
            return (), 0
        if not {"type", "index"} <= task.keys():
            raise ValueError("task.type and task.index are missing")
        if unknown := sorted((members.keys() | {task["type"]}) - {"chief", "worker"}):
            raise UsageError(
                "TF_CONFIG may contain the roles chief and worker: all processes train together, without parameter "
                f"servers and separate evaluators. Received: {', '.join(map(repr, unknown))}. Start no process for "
                "other roles, and remove them."
            )
        own, chiefs = int(task["index"]), members.get("chief", [])
        if not 0 <= own < len(members.get(task["type"], [])):
            raise ValueError(f"there is no {task['type']} {own}")
        # Worker 0 may be called 'chief': it then comes before the workers.
        return [*chiefs, *members.get("worker", [])], own + (len(chiefs) if task["type"] == "worker" else 0)
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            'TF_CONFIG must be JSON such as {"cluster": {"worker": ["host:port", ...]}, '
            f'"task": {{"type": "worker", "index": 0}}}}. Received: {text[:200]!r} ({error}).'
        ) from error


def slurm_tasks(environment: Mapping[str, str]) -> int:
    """Return the number of tasks of the step that this process belongs to; 0 outside of one."""
    # SLURM_PROCID is set by srun only: a shell inside an allocation is not a task.
    if "SLURM_PROCID" not in environment:
        return 0
    return int(environment.get("SLURM_STEP_NUM_TASKS", "0"))


def slurm_address(environment: Mapping[str, str], *, has_gpus: bool) -> ClusterAddress:
    """Return this task's place in its step.

    The port follows from job and step, so that two jobs on one node do not collide. It serves the meeting only;
    each worker then takes a free one. `has_gpus`: whether this process sees GPUs.
    """
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    first = re.match(r"(?:[^,\[\]]|\[\d[\d,-]*\])+(?=,|$)", nodes)
    if not first:
        raise UsageError(f"SLURM_STEP_NODELIST must be names such as gpu[01-04,07]. Received: {nodes!r}.")
    if environment.get("SLURM_DISTRIBUTION", "").startswith("arbitrary"):
        raise UsageError(
            "With srun --distribution=arbitrary the node of task 0 is unknown. Omit that option, or describe the "
            "cluster by --nodes, --node-rank and --master."
        )
    # Tasks of each node, such as 2(x3),1.
    counts = re.sub(r"\(x\d+\)", "", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    most = max(map(int, counts.split(",")))
    if most > 1 and has_gpus and not _has_own_gpus(environment):
        raise UsageError(
            f"Each task uses all GPUs that it sees, and {most} tasks of a node would share them. Use "
            "--ntasks-per-node=1, one worker with all GPUs of its node, or --gpus-per-task=1."
        )
    step = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"
    return ClusterAddress(
        nodes=slurm_tasks(environment),
        node_rank=int(environment["SLURM_PROCID"]),
        # gpu[01-04,07],login begins with gpu01.
        master=join_address(
            re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0]), FIRST_PORT + zlib.crc32(step.encode()) % PORTS
        ),
    )


def _has_own_gpus(environment: Mapping[str, str]) -> bool:
    """Return whether SLURM gives each task of a node its own GPUs."""
    if environment.get("SLURM_GPUS_PER_TASK") or "gpu" in environment.get("SLURM_TRES_PER_TASK", ""):
        return True  # the latter is cpu=8 after --cpus-per-task=8 alone
    return environment.get("SLURM_GPU_BIND", "").split(",")[-1] not in ("", "none")  # perhaps verbose,none


# === Meeting ===


class Connection:
    """A TCP connection over which JSON values are sent, one a line."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._lines = connected.makefile("r", encoding="utf-8")

    def send(self, value: Any) -> None:
        """Send a value."""
        self.socket.sendall((json.dumps(value) + "\n").encode())

    def receive(self) -> Any:
        """Return the next value; TimeoutError if none comes in the socket's timeout, OSError if it was closed."""
        line = self._lines.readline()
        if not line.endswith("\n"):
            raise ConnectionError("the connection was closed")
        return json.loads(line)

    def has_closed(self) -> bool:
        """Return whether the other end, which sends nothing now, has closed the connection."""
        timeout = self.socket.gettimeout()
        try:
            self.socket.setblocking(False)
            return self.socket.recv(1) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.socket.settimeout(timeout)

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self.socket.close()


@dataclass(frozen=True)
class Meeting:
    """What a node knows of the others."""

    rank: int  # of this node
    workers: tuple[str, ...]  # `host:port` of every node's worker by rank
    names: tuple[str, ...]  # of every node by rank, for messages
    connections: Mapping[int, Connection]  # by rank: of node 0 to every other node, of these to node 0


waiting = threading.Event()  # set while this process waits for other nodes


def meet(address: ClusterAddress, *, timeout_seconds: float = 600.0) -> Meeting:
    """Wait for all nodes.

    Raises:
        TransientError: some nodes did not come in time (their ranks are named), or node 0 was lost.
        UsageError: two nodes have one rank, or --nodes differs.
    """
    deadline = time.monotonic() + timeout_seconds
    name = f"Worker {address.node_rank} ({socket.gethostname()}, process {os.getpid()})"
    waiting.set()
    try:
        return _join(address, name, deadline) if address.node_rank else _Host(address, name, deadline).meet()
    finally:
        waiting.clear()


class _Host:
    """Node 0, which collects the addresses of all nodes, and sends each the list, or the reason why there is none."""

    def __init__(self, address: ClusterAddress, name: str, deadline: float) -> None:
        self.address, self.deadline = address, deadline
        self.host, self.port = split_address(address.master)
        self.workers, self.names = {0: join_address(self.host, free_port())}, {0: name}
        self.guests: dict[int, Connection] = {}

    def meet(self) -> Meeting:
        try:
            server = listen(self.port)
        except OSError as error:
            raise SwavError(
                f"Node 0 must be able to listen at port {self.port} of --master {self.address.master}: "
                f"{error}. Another job may use it: choose another port, the same on all nodes."
            ) from error
        try:
            with server:
                shown: list[int] = []
                while missing := self._missing():
                    if not self._welcome(server) and missing != shown:
                        shown = missing
                        _log_missing(missing)
                        self._send_to_all({"missing": missing})
        except SwavError as error:
            self._send_to_all({"refused": str(error), "exit_code": error.exit_code})
            for guest in self.guests.values():
                guest.close()
            raise
        workers, names = (
            [by_rank[rank] for rank in sorted(by_rank)] for by_rank in (self.workers, self.names)
        )
        self._send_to_all({"workers": workers, "names": names})
        return Meeting(0, tuple(workers), tuple(names), self.guests)

    def _send_to_all(self, value: Any) -> None:
        for guest in self.guests.values():
            with contextlib.suppress(OSError):  # a node that has left is missed at the start of the cluster
                guest.send(value)

    def _missing(self) -> list[int]:
        """Return the ranks that have not come, or have come and left, as after kill -9: these are forgotten."""
        for rank in [rank for rank, guest in self.guests.items() if guest.has_closed()]:
            self.guests.pop(rank).close()
            del self.workers[rank], self.names[rank]
        return [rank for rank in range(self.address.nodes) if rank not in self.workers]

    def _welcome(self, server: socket.socket) -> bool:
        """Accept one node, or return False if none comes for a while; connections of anything else are closed."""
        address, left = self.address, self.deadline - time.monotonic()
        server.settimeout(max(min(left, NOTICE_SECONDS), 0.001))
        try:
            accepted, (host, *_) = server.accept()
        except TimeoutError:
            if left > NOTICE_SECONDS:
                return False
            missing = ", ".join(map(str, self._missing()))
            raise TransientError(
                f"All {address.nodes} nodes must start within the time limit. Missing: node rank {missing}. Is the "
                f"command running there, with the same --nodes, and can it reach {address.master}?"
            ) from None
        accepted.settimeout(HELLO_SECONDS)
        guest = Connection(accepted)
        try:
            hello = guest.receive()
            rank, port, nodes = (int(hello[key]) for key in ("rank", "port", "nodes"))
            name = str(hello["name"])
        except (OSError, ValueError, KeyError, TypeError):
            guest.close()
            return True
        host = host.removeprefix("::ffff:")  # the prefix of IPv4 addresses at a socket for both
        if ip_address(host.partition("%")[0]).is_loopback:  # another worker of this machine
            host = self.host
        taken = rank not in self._missing()
        if nodes != address.nodes or taken or not 0 < rank < address.nodes:
            self.guests[-1] = guest  # it receives the reason, too
            raise UsageError(
                f"Each node needs its own --node-rank and the same --nodes {address.nodes}. "
                f"Received: rank {rank} of {nodes} from {host}; present: {sorted(self.workers)}."
            )
        self.guests[rank], self.workers[rank], self.names[rank] = guest, join_address(host, port), name
        return True


def _log_missing(missing: Sequence[int]) -> None:
    log.info("Waiting for node rank %s to start.", ", ".join(map(str, missing)))


def _join(address: ClusterAddress, name: str, deadline: float) -> Meeting:
    """Send this node's address to node 0, and return its answer."""
    master = _connect(address, deadline)
    who = f"this node (rank {address.node_rank} of {address.nodes})"
    try:
        master.send({"rank": address.node_rank, "port": free_port(), "nodes": address.nodes, "name": name})
        while missing := (answer := master.receive()).get("missing"):
            _log_missing(missing)
    except TimeoutError as error:
        raise TransientError(
            f"Node 0 at {address.master} did not answer {who} in time. Check that node 0 is running, and start the "
            "same command on all machines."
        ) from error
    except (OSError, ValueError) as error:
        raise TransientError(
            f"Node 0 at {address.master} was lost while {who} waited for the others: its connection closed without "
            "notice, as after kill -9. Start the same command on all machines."
        ) from error
    if "refused" in answer:
        kind = UsageError if answer["exit_code"] == UsageError.exit_code else TransientError
        raise kind(f"Node 0 at {address.master} refused {who}: {answer['refused']}")
    return Meeting(address.node_rank, tuple(answer["workers"]), tuple(answer["names"]), {0: master})


def _connect(address: ClusterAddress, deadline: float) -> Connection:
    """Connect to node 0 as soon as it listens."""
    notice: float | None = time.monotonic() + NOTICE_SECONDS
    while True:
        try:
            master = socket.create_connection(split_address(address.master), timeout=5.0)
            if master.getsockname() != master.getpeername():
                master.settimeout(max(deadline - time.monotonic(), 0.001))
                return Connection(master)
            # Linux connects a socket to itself if nothing listens on a port that it picks as its own.
            master.close()
            raise ConnectionRefusedError("nothing is listening there")
        except OSError as error:
            if time.monotonic() > deadline:
                raise TransientError(
                    f"Node 0 did not answer at {address.master}: {error}. Check --master, the firewall, and that the "
                    "command runs on node 0."
                ) from error
            if notice and time.monotonic() > notice:
                log.info("Waiting for node 0 at %s to start (%s).", address.master, error)
                notice = None
            time.sleep(0.5)


# === Addresses ===


def listen(port: int) -> socket.socket:
    """Return a server socket at all addresses of this machine, IPv4 and IPv6; port 0 takes a free one."""
    if socket.has_dualstack_ipv6():  # false also if the system has IPv6 turned off
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def join_address(host: str, port: int) -> str:
    """Return `host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Return host, without brackets, and port of `host:port`.

    Raises:
        ValueError: it has another form, such as an IPv6 address without brackets.
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (bare == host and ":" in host) or not port.isascii() or not port.isdigit():
        raise ValueError(f"{address!r} is not host:port")
    if not 0 < int(port) < 65536:
        raise ValueError(f"port {port} is not from 1 to 65535")
    return bare, int(port)


def free_port() -> int:
    """Return a TCP port at which nothing on this machine listens now."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
