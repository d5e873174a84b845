"""SLURM's variables, made after srun's manual ('OUTPUT ENVIRONMENT VARIABLES'); none came from a cluster."""

import pytest

from swav_tf.plumbing.errors import UsageError
from swav_tf.training.rendezvous import (
    ClusterAddress,
    expand_counts,
    expand_nodelist,
    slurm_address,
    slurm_tasks,
)

# As the third task of `srun --nodes=4 --ntasks-per-node=1 --gpus-per-node=8` in a job 4211 would have them.
FOUR_NODES = {
    "SLURM_JOB_ID": "4211",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NODELIST": "gpu[09-11,17]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_GPUS_PER_NODE": "8",
    "SLURM_DISTRIBUTION": "cyclic",
}


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("gpu[01-04,07]", ["gpu01", "gpu02", "gpu03", "gpu04", "gpu07"]),
        ("node9,node10", ["node9", "node10"]),
        ("a[1-2]b[08-10]", ["a1b08", "a1b09", "a1b10", "a2b08", "a2b09", "a2b10"]),
        (
            "login-1,gpu-a100-[098-101]",
            ["login-1", "gpu-a100-098", "gpu-a100-099", "gpu-a100-100", "gpu-a100-101"],
        ),
        ("single", ["single"]),
        ("n[3]-ib", ["n3-ib"]),
    ],
)
def test_node_lists(text, nodes):
    assert expand_nodelist(text) == nodes


@pytest.mark.parametrize("text", ["", "gpu[01-", "gpu[a-b]", "gpu[]", ",gpu1", "gpu]1["])
def test_what_is_no_node_list_is_refused(text):
    with pytest.raises(UsageError, match="SLURM_STEP_NODELIST must"):
        expand_nodelist(text)


def test_counts():
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(UsageError, match="SLURM_STEP_TASKS_PER_NODE must"):
        expand_counts("2x3")


# Bugs caught: a rank of another task; a master that is not task 0's node; node10 before node9.
def test_a_step_is_a_cluster():
    address = slurm_address(FOUR_NODES, has_gpus=True)
    assert (address.nodes, address.node_rank, address.host) == (4, 2, "gpu09")
    others = FOUR_NODES | {"SLURM_STEP_NODELIST": "node9,node10"}
    assert slurm_address(others, has_gpus=True).host == "node9"


# Bug caught: two jobs, or two steps of one job, that meet at one port of a node they share.
def test_the_port_follows_from_job_and_step():
    ports = {
        slurm_address(FOUR_NODES | {"SLURM_JOB_ID": job, "SLURM_STEP_ID": step}, has_gpus=True).port
        for job in ("4211", "4212", "4213")
        for step in ("0", "1")
    }
    assert len(ports) == 6
    assert all(20_000 <= port < 32_000 for port in ports)
    everyone = {slurm_address(FOUR_NODES | {"SLURM_PROCID": str(r)}, has_gpus=True).master for r in range(4)}
    assert len(everyone) == 1


# Bug caught: eight workers of a node that each take all of its eight GPUs.
def test_tasks_that_would_share_gpus_are_refused():
    eight = FOUR_NODES | {"SLURM_STEP_NUM_TASKS": "32", "SLURM_STEP_TASKS_PER_NODE": "8(x4)"}
    with pytest.raises(UsageError, match=r"8 tasks of a node would share theirs.*--ntasks-per-node=1"):
        slurm_address(eight, has_gpus=True)
    assert slurm_address(eight, has_gpus=False).nodes == 32
    assert slurm_address(eight | {"SLURM_GPUS_PER_TASK": "1"}, has_gpus=True) == ClusterAddress(
        32, 2, slurm_address(FOUR_NODES, has_gpus=True).master
    )


def test_a_step_whose_first_task_may_be_anywhere_is_refused():
    with pytest.raises(UsageError, match="arbitrary"):
        slurm_address(FOUR_NODES | {"SLURM_DISTRIBUTION": "arbitrary"}, has_gpus=True)


# Bug caught: an interactive shell in an allocation that waits for tasks that never come.
def test_only_a_task_of_srun_counts():
    shell = {
        name: value
        for name, value in FOUR_NODES.items()
        if not name.startswith(("SLURM_STEP", "SLURM_PROCID"))
    }
    assert slurm_tasks(shell) == 0
    assert slurm_tasks(FOUR_NODES) == 4
    with pytest.raises(UsageError, match="SLURM_STEP_NUM_TASKS must be a whole number"):
        slurm_tasks(FOUR_NODES | {"SLURM_STEP_NUM_TASKS": "four"})
