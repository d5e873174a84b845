import json
import os
import time

import numpy as np
import pytest
import tensorflow as tf

from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.pretraining import Train
from swav_tf.training import cluster
from swav_tf.training.cluster import (
    FUSED_BATCH_NORM,
    batches_on_devices,
    build_strategy,
    differences,
    mean_over_workers,
    topology,
)
from swav_tf.training.rendezvous import ClusterAddress, Meeting


def settings(**changes):
    return Train(**{"epochs": 1, "batch_size": 8, "precision": "float32"} | changes)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """TensorFlow has started, with the two CPUs of conftest.py, and no cluster is described."""
    tf.config.list_logical_devices()
    for name in ("TF_CONFIG", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


# Bugs caught: another strategy than the requested one; an allocation of SLURM without srun that waits for tasks.
@pytest.mark.parametrize(
    ("changes", "kind", "replicas"),
    [
        ({"strategy": "auto"}, "one device", 1),
        ({"strategy": "auto", "logical_cpus": 2}, "mirrored", 2),
        ({"strategy": "mirrored"}, "mirrored", 2),
    ],
)
def test_kinds(changes, kind, replicas, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    team = topology(build_strategy(settings(**changes))[0])
    assert (team.kind, team.replicas, team.workers, team.is_chief) == (kind, replicas, 1, True)


# Bug caught: a number that counts once for each replica of its worker.
def test_the_mean_over_workers_counts_each_worker_once():
    strategy, _ = build_strategy(settings(strategy="mirrored"))
    assert mean_over_workers(strategy, [0.0, 65535.0]) == [0.0, 65535.0]


DESCRIBED = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}'
NO_TASK = '{"cluster": {"worker": ["a:1", "b:1"]}}'


# Bug caught: a cluster that is requested, does not exist, and is silently replaced by one device.
@pytest.mark.parametrize(
    ("changes", "tf_config", "address", "message"),
    [
        ({"strategy": "multi_worker"}, "", None, "needs a description of the cluster"),
        ({}, "{workers: 2", None, "TF_CONFIG must be JSON"),
        ({}, NO_TASK, None, "task.type and task.index are missing"),
        ({}, DESCRIBED.replace('"index": 0', '"index": 2'), None, "there is no worker 2"),
        ({}, DESCRIBED.replace('"type": "worker"', '"type": "evaluator"'), None, "Received: 'evaluator'"),
        ({}, DESCRIBED.replace('{"worker', '{"ps": ["c:1"], "worker'), None, "Received: 'ps'"),
        ({}, DESCRIBED, ClusterAddress(2, 0, "a:1"), "described once"),
        ({"strategy": "mirrored"}, "", ClusterAddress(2, 0, "a:1"), "--nodes needs"),
        ({"logical_cpus": 7}, "", None, "must be set before TensorFlow starts"),
        ({"strategy": "multi_worker", "logical_cpus": 2}, "", None, "each of several workers has one"),
    ],
)
def test_impossible_requests_are_refused(changes, tf_config, address, message, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config)
    with pytest.raises(UsageError, match=message):
        build_strategy(settings(**changes), address)


# Bug caught: replicas of the CPU that are requested and silently replaced by one GPU.
@pytest.mark.parametrize("changes", [{"logical_cpus": 2}, {"logical_cpus": 1, "strategy": "mirrored"}])
def test_logical_cpus_are_refused_with_a_gpu(changes, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["/physical_device:GPU:0"])
    with pytest.raises(UsageError, match=r"this machine has 1 GPU, which would be used instead"):
        build_strategy(settings(**changes))


# Bugs caught: a recipe for a GPU that the CPU trains, as TensorFlow lacks CUDA; CPUs that are requested and refused.
def test_a_gpu_that_tensorflow_misses(nvml, caplog):
    for half in ("mixed_float16", "mixed_bfloat16"):
        with pytest.raises(UsageError, match=r"Received: 0 of 4, .*pip install 'tensorflow\[and-cuda\]'"):
            build_strategy(settings(precision=half))
        build_strategy(settings(precision=half, logical_cpus=2))
    assert caplog.messages == []
    build_strategy(settings())
    assert "Received: 0 of 4, so the CPU would train in float32" in caplog.text


# Bugs caught: a step of one GPU that begins with the copy of its batch; batches that are lost or reordered.
def test_batches_are_copied_to_one_gpu_ahead(monkeypatch):
    made = []

    def batch(number):
        made.append(int(number))
        return np.full((2, 3), number, np.uint8)

    def batches():
        return tf.data.Dataset.range(9).map(lambda i: tf.numpy_function(batch, [i], tf.uint8))

    device = tf.config.list_logical_devices("CPU")[1]  # stands for a GPU
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [device])
    iterator = iter(batches_on_devices(tf.distribute.get_strategy(), batches))
    elements = [next(iterator)]
    while len(made) < 2:  # the next one is made without a request
        time.sleep(0.01)
    elements += iterator
    assert {element.device.rpartition("/")[2] for element in elements} == {device.name.rpartition("/")[2]}
    assert [element.numpy()[0, 0] for element in elements] == list(range(9))
    assert made == list(range(9))


# Bug caught: batches that are declared endless and then prefetched, so that a GPU run ended with an error.
def test_batches_are_endless_only_without_a_gpu(monkeypatch):
    def batches():
        return tf.data.Dataset.range(9)

    one, gpu = tf.distribute.get_strategy(), tf.config.LogicalDevice("/CPU:0", "CPU")
    assert batches_on_devices(one, batches).cardinality() == tf.data.INFINITE_CARDINALITY
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [gpu])
    assert batches_on_devices(one, batches).cardinality() != tf.data.INFINITE_CARDINALITY


# Bugs caught: TensorFlow's slow batch normalization on GPUs (2.3 times the step); a user's choice that is overruled.
@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_the_fused_batch_normalization_is_requested(before, after, monkeypatch):
    monkeypatch.delenv(FUSED_BATCH_NORM, raising=False)
    if before is not None:
        monkeypatch.setenv(FUSED_BATCH_NORM, before)
    build_strategy(settings())
    assert os.environ[FUSED_BATCH_NORM] == after
    monkeypatch.delenv(FUSED_BATCH_NORM)


# Bugs caught: a worker that lacks a setting, or an equal one of several that is named all the same.
def test_each_difference_names_its_worker():
    first = {"train": {"seed": 1, "epochs": 2}, "crops": [{"size": 8}]}
    assert differences([first, first]) == []
    others = [first, {**first, "crops": [{"size": 9}]}, first, {**first, "train": {"seed": 1}}]
    assert differences(others) == [
        "  worker 1 has crops.0.size 9, worker 0 has 8",
        "  worker 3 has train.epochs None, worker 0 has 2",
    ]


# Variables as `srun --nodes=2 --ntasks-per-node=1` sets them on the second of two nodes.
SLURM = {
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_NTASKS": "2",
}


# Bugs caught: a wrong rank, NCCL without a GPU, a description that is inherited by processes that this one starts.
def test_a_slurm_step_becomes_a_cluster(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    met = Meeting(1, ("node07:1", "node08:2"), ("", ""), {0: None})
    monkeypatch.setattr(cluster, "meet", lambda address: met)
    monkeypatch.setattr(cluster, "_configure_coordination", lambda workers, timeout_seconds: None)
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda **made: made)
    made, meeting = build_strategy(settings())
    resolver = made["cluster_resolver"]
    assert meeting is met
    assert resolver.cluster_spec().as_dict() == {"worker": ["node07:1", "node08:2"]}
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)
    assert made["communication_options"].implementation.value == "RING"
    assert "TF_CONFIG" not in os.environ


# Bugs caught: two workers with one number, since a chief counts apart; other addresses than those of TF_CONFIG.
@pytest.mark.parametrize(("task", "number"), [("chief", 0), ("worker", 2)])
def test_a_chief_of_tf_config_is_worker_0(task, number, monkeypatch):
    described = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    own = {"type": task, "index": number // 2}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": described, "task": own}))
    met = Meeting(number, ("x:1", "y:1", "z:1"), ("", "", ""), {0: None})
    addresses = []
    monkeypatch.setattr(cluster, "meet", lambda address: addresses.append(address) or met)
    monkeypatch.setattr(cluster, "_configure_coordination", lambda workers, timeout_seconds: None)
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda **made: made)
    made, _ = build_strategy(settings())
    assert addresses == [ClusterAddress(3, number, "a:1")]
    resolver = made["cluster_resolver"]
    assert resolver.cluster_spec().as_dict() == {"worker": ["a:1", "b:1", "c:1"]}
    assert (resolver.task_type, resolver.task_id) == ("worker", number)


# Bug caught: a worker that is done lives on for up to a minute, as an autotune thread of an iterator sleeps.
def test_no_iterator_on_a_device_is_autotuned(monkeypatch):
    from tensorflow.core.framework import dataset_options_pb2
    from tensorflow.python.ops import gen_dataset_ops

    make, enabled = gen_dataset_ops.make_iterator, []

    def spy(dataset, *rest, **named):
        options = dataset_options_pb2.Options.FromString(tf.raw_ops.GetOptions(input_dataset=dataset).numpy())
        # Not set means autotuned.
        enabled.append(
            options.autotune_options.WhichOneof("optional_enabled") != "enabled"
            or options.autotune_options.enabled
        )
        return make(dataset, *rest, **named)

    monkeypatch.setattr(gen_dataset_ops, "make_iterator", spy)
    strategy, _ = build_strategy(settings(strategy="mirrored"))
    next(iter(batches_on_devices(strategy, lambda: tf.data.Dataset.range(4).batch(1).repeat())))
    assert enabled == [False] * strategy.num_replicas_in_sync
