"""A SLURM step as a cluster: this task's rank, and where the tasks meet. No TensorFlow."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Mapping

from swav_tf.errors import UsageError
from swav_tf.training.cluster.rendezvous import ClusterAddress, join_address

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
