"""How the nodes of a cluster find each other."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from swav_tf.plumbing.errors import SwavError, TransientError, UsageError

# Below the ports that Linux gives to outgoing connections (from 32768).
FIRST_PORT, PORTS = 20_000, 12_000
# Any of these gives each task of a node GPUs of its own.
GPUS_BY_TASK = ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND")


def slurm_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of the step that this process is a task of; 0 outside of one."""
    # SLURM_PROCID is set by srun only: a shell inside an allocation is not a task.
    if "SLURM_PROCID" not in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return 0
    return _whole_number(environment, "SLURM_STEP_NUM_TASKS")


def slurm_address(environment: Mapping[str, str], *, has_gpus: bool) -> ClusterAddress:
    """This task's place among the tasks of its step.

    The port follows from job and step, so that two jobs of one node do not meet at the same. A node's
    worker takes any free port; only the meeting has this one.

    Args:
        environment: of this process, a task of several (`slurm_tasks`).
        has_gpus: whether this process sees GPUs.

    Raises:
        UsageError: the variables do not describe a step that can train together.
    """
    nodes = expand_nodelist(environment.get("SLURM_STEP_NODELIST", ""))
    if environment.get("SLURM_DISTRIBUTION", "").startswith("arbitrary"):
        raise UsageError(
            "Under srun --distribution=arbitrary nobody can tell where task 0 is. Leave that option out, or "
            "describe the cluster by --nodes, --node-rank and --master."
        )
    most = max(expand_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", "1")))
    if most > 1 and has_gpus and not any(environment.get(name) for name in GPUS_BY_TASK):
        raise UsageError(
            f"Each task uses all GPUs that it sees, and {most} tasks of a node would share theirs. Use "
            "--ntasks-per-node=1, one worker with all GPUs of its node, or give each its own by --gpus-per-task=1."
        )
    step = f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"
    return ClusterAddress(
        nodes=slurm_tasks(environment),
        node_rank=_whole_number(environment, "SLURM_PROCID"),
        master=join_address(nodes[0], FIRST_PORT + zlib.crc32(step.encode()) % PORTS),
    )


def expand_nodelist(text: str) -> list[str]:
    """Node names of SLURM's short form: `gpu[01-03,07],login` is gpu01, gpu02, gpu03, gpu07, login.

    Raises:
        UsageError: it is not of that form.
    """
    # Names are parted by commas outside of brackets.
    names = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if not names or ",".join(names) != text:
        raise UsageError(f"SLURM_STEP_NODELIST must be names such as gpu[01-04,07]. Received: {text!r}.")
    return [node for name in names for node in _expand_name(name, text)]


def _expand_name(name: str, text: str) -> list[str]:
    parts: list[list[str]] = []
    for piece in re.split(r"(\[[^\[\]]*\])", name):
        if not piece.startswith("["):
            parts.append([piece])
            continue
        numbers = []
        for span in piece[1:-1].split(","):
            found = re.fullmatch(r"(\d+)(?:-(\d+))?", span)
            if not found:
                raise UsageError(
                    f"SLURM_STEP_NODELIST must have ranges of numbers in brackets. Received: {text!r}."
                )
            first, last = found[1], found[2] or found[1]
            numbers += [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        parts.append(numbers)
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def expand_counts(text: str) -> list[int]:
    """Tasks of each node from SLURM's short form: `2(x3),1` is 2, 2, 2, 1.

    Raises:
        UsageError: it is not of that form.
    """
    counts = []
    for item in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item)
        if not found:
            raise UsageError(f"SLURM_STEP_TASKS_PER_NODE must be counts such as 8(x4). Received: {text!r}.")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _whole_number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdigit():
        raise UsageError(f"{name} must be a whole number, as srun sets it. Received: {value!r}.")
    return int(value)


@dataclass(frozen=True)
class ClusterAddress:
    """This node's place in a cluster.

    Args:
        nodes: number of nodes, one worker process each.
        node_rank: this node's number, 0 <= node_rank < nodes.
        master: `host:port` of node 0, reachable from all nodes.
    """

    nodes: int
    node_rank: int
    master: str

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

    @property
    def host(self) -> str:
        """The master's host."""
        return split_address(self.master)[0]

    @property
    def port(self) -> int:
        """The master's port, used only until the nodes have met."""
        return split_address(self.master)[1]


def meet(address: ClusterAddress, *, timeout_seconds: float = 600.0) -> list[str]:
    """`host:port` of every node's worker, by rank; returns when all nodes are there.

    Raises:
        TransientError: not all came in time (the ranks that are missing are named), or node 0 was lost.
        UsageError: two had one rank, or another number of nodes.
    """
    deadline = time.monotonic() + timeout_seconds
    if address.node_rank == 0:
        return _gather(address, deadline)
    return _join(address, deadline)


def _gather(address: ClusterAddress, deadline: float) -> list[str]:
    workers = {0: join_address(address.host, free_port())}
    guests: dict[int, socket.socket] = {}
    try:
        server = listen(address.port)
    except OSError as error:
        raise SwavError(
            f"Node 0 must be able to listen at port {address.port} of --master {address.master}: {error}. "
            "Another job may use it: give another port, the same on all nodes."
        ) from error
    try:
        with server:
            while len(workers) < address.nodes:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    guest, (host, *_) = server.accept()
                except TimeoutError:
                    missing = sorted(set(range(address.nodes)) - set(workers))
                    raise TransientError(
                        f"All {address.nodes} nodes must start within the time limit. No word from node rank "
                        f"{', '.join(map(str, missing))}: is the command running there, with the same --nodes, "
                        f"and does it reach {address.master}?"
                    ) from None
                try:
                    guest.settimeout(10.0)
                    hello = json.loads(guest.makefile("r").readline())
                    rank, port, nodes = int(hello["rank"]), int(hello["port"]), int(hello["nodes"])
                except (OSError, ValueError, KeyError, TypeError):
                    guest.close()  # something else knocked at this port
                    continue
                host = host.removeprefix("::ffff:")  # IPv4, as a socket for both sees it
                taken = rank in workers and not (rank in guests and _has_gone(guests[rank]))
                if nodes != address.nodes or taken or not 0 < rank < address.nodes:
                    guests.setdefault(-1, guest)  # it is told with the others
                    raise UsageError(
                        f"Each node needs its own --node-rank and the same --nodes {address.nodes}. "
                        f"Received: rank {rank} of {nodes} from {host}; already here: {sorted(workers)}."
                    )
                guests[rank] = guest
                workers[rank] = join_address(host, port)
        listing = [workers[rank] for rank in range(address.nodes)]
        for rank, guest in guests.items():
            try:
                guest.sendall((json.dumps(listing) + "\n").encode())
            except OSError as error:
                raise TransientError(
                    f"Node rank {rank} went away before all nodes had come: {error}."
                ) from error
        return listing
    except SwavError as error:
        refusal = json.dumps({"refused": str(error), "exit_code": error.exit_code}) + "\n"
        for guest in guests.values():
            with contextlib.suppress(OSError):
                guest.sendall(refusal.encode())
        raise
    finally:
        for guest in guests.values():
            guest.close()


def _has_gone(guest: socket.socket) -> bool:
    """Whether a waiting node was ended: it may come again under its rank."""
    try:
        guest.setblocking(False)
        return guest.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        guest.settimeout(10.0)


def _join(address: ClusterAddress, deadline: float) -> list[str]:
    hello = json.dumps({"rank": address.node_rank, "port": free_port(), "nodes": address.nodes}) + "\n"
    while True:
        try:
            with socket.create_connection((address.host, address.port), timeout=5.0) as master:
                master.sendall(hello.encode())
                master.settimeout(max(deadline - time.monotonic(), 0.001))
                listing = master.makefile("r").readline()
                return _workers_of(listing, address)
        except OSError as error:
            if time.monotonic() > deadline:
                raise TransientError(f"Node 0 did not answer at {address.master}: {error}.") from error
            time.sleep(0.5)


def _workers_of(answer: str, address: ClusterAddress) -> list[str]:
    """The list in node 0's answer; without one it was lost."""
    who = f"this node (rank {address.node_rank} of {address.nodes})"
    if not answer.endswith("\n"):
        raise TransientError(
            f"Node 0 at {address.master} was lost while {who} waited for the others: its connection closed without "
            "a word, as after kill -9. Start the same command on all machines."
        )
    said = json.loads(answer)
    if isinstance(said, dict):
        kind = UsageError if said["exit_code"] == UsageError.exit_code else TransientError
        raise kind(f"Node 0 at {address.master} turned {who} away: {said['refused']}")
    return [str(worker) for worker in said]


def listen(port: int) -> socket.socket:
    """A server socket at all addresses of this machine, IPv4 and IPv6; port 0 takes a free one."""
    if socket.has_dualstack_ipv6():  # false, too, where the system has IPv6 turned off
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def join_address(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of `host:port`.

    Raises:
        ValueError: it is not of this form, or an IPv6 address stands without brackets.
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (bare == host and ":" in host) or not port.isascii() or not port.isdigit():
        raise ValueError(f"{address!r} is not host:port")
    if not 0 < int(port) < 65536:
        raise ValueError(f"port {port} is not from 1 to 65535")
    return bare, int(port)


def free_port() -> int:
    """A TCP port that nothing on this machine listens at now."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
