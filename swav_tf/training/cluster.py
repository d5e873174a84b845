"""The distribution strategy of a job and the topology of its replicas and workers."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.eager import context as tf_context

from swav_tf.plumbing.errors import TransientError, UsageError
from swav_tf.recipe.files import AnyRecipe
from swav_tf.recipe.pretraining import Train
from swav_tf.training.rendezvous import ClusterAddress, meet, slurm_address, slurm_tasks

ONE_DEVICE = "one device"
START_SECONDS = 60.0  # in which workers that have met take their devices

# cuDNN's batch normalisation of half precision in one pass, with the ReLU and the sum behind it. TensorFlow keeps it
# off, and then takes 2.3 times as long for a step on an H200 (docs/performance.md). It overflows a little earlier,
# which the loss scale takes for any overflow: such a step is skipped on all replicas. Whoever sets it keeps that.
FUSED_BATCH_NORM = "TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT"


@dataclass(frozen=True)
class Topology:
    """Who computes: worker processes, and replicas (devices) over all of them."""

    kind: str
    workers: int
    worker: int  # this process, 0 <= worker < workers
    replicas: int
    devices: str  # GPU or CPU

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder."""
        return self.worker == 0


def build_strategy(settings: Train, cluster: ClusterAddress | None = None) -> tf.distribute.Strategy:
    """The strategy that a recipe asks for on this machine; call it before any other TensorFlow work.

    `auto` takes several workers if a cluster is described (`cluster`, TF_CONFIG or SLURM), else
    all visible GPUs (or `logical_cpus`), else one device.

    Raises:
        UsageError: what was asked for is not there, or would not be used.
    """
    os.environ.setdefault(FUSED_BATCH_NORM, "1")  # read at the first batch normalisation on a GPU
    gpus = tf.config.list_physical_devices("GPU")
    if settings.logical_cpus and gpus:
        raise UsageError(
            f"train.logical_cpus={settings.logical_cpus} makes replicas of the CPU, for trials without a GPU; this "
            f"machine has {len(gpus)} GPU(s), which would be used instead. Leave it out, or hide them: "
            "CUDA_VISIBLE_DEVICES=-1 swav-tf ..."
        )
    if settings.logical_cpus > 1:
        _split_cpu(settings.logical_cpus)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # a notebook has used it already: then it is as it is
            tf.config.experimental.set_memory_growth(gpu, True)
    # TensorFlow's default rounds float32 products to 10 bits on Ampere and later, Sinkhorn's and the scores' too.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    kind = settings.strategy
    if kind == "auto":
        if cluster is not None or _tf_config_workers() > 1 or slurm_tasks(os.environ) > 1:
            kind = "multi_worker"
        else:
            kind = "mirrored" if len(gpus) > 1 or settings.logical_cpus > 1 else "one_device"
    if cluster is not None and kind != "multi_worker":
        raise UsageError(f"--nodes needs train.strategy=auto or multi_worker. Received: {kind}.")
    if kind == "multi_worker":
        if settings.logical_cpus > 1:
            raise UsageError(
                f"train.logical_cpus={settings.logical_cpus} makes replicas of one process's CPU, and each of several "
                "workers has one. Leave it out, or start more workers."
            )
        return _multi_worker(cluster, settings, has_gpus=bool(gpus))
    if kind == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return mirrored(tuple(device.name for device in devices))
    return tf.distribute.get_strategy()


@functools.cache
def mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """The one mirrored strategy of this process over these devices.

    Two of them would number their collectives alike, and TensorFlow then aborts the later one's
    ("Collective instance 100 expected type ...").
    """
    return tf.distribute.MirroredStrategy(list(devices))


def topology(strategy: tf.distribute.Strategy) -> Topology:
    """Who computes under this strategy."""
    devices = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    replicas = int(strategy.num_replicas_in_sync)
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or resolver is None:
        kind = "mirrored" if isinstance(strategy, tf.distribute.MirroredStrategy) else ONE_DEVICE
        return Topology(kind, workers=1, worker=0, replicas=replicas, devices=devices)
    members = resolver.cluster_spec().as_dict()
    # TF_CONFIG may name worker 0 'chief': it then comes before the workers.
    chiefs = len(members.get("chief", []))
    worker = int(resolver.task_id or 0) + (chiefs if resolver.task_type == "worker" else 0)
    workers = max(chiefs + len(members.get("worker", [])), 1)
    return Topology("multi worker", workers=workers, worker=worker, replicas=replicas, devices=devices)


def batches_on_devices(
    strategy: tf.distribute.Strategy, batches: Callable[[], tf.data.Dataset]
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """This worker's batches, each replica's on its device before the step that needs it begins.

    So the next batch is copied while a step computes. `tf.distribute` sees to that for several devices; for
    one GPU, without its help, batches would stay in the host's memory and each step would begin with the copy.

    Args:
        strategy: of the model that is trained.
        batches: makes them, one replica's share of a part of a batch after the other.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if gpus and topology(strategy).kind == ONE_DEVICE:
        return batches().apply(tf.data.experimental.prefetch_to_device(gpus[0].name, buffer_size=1))
    return strategy.distribute_datasets_from_function(lambda _: _endless(batches()))


def _endless(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The same batches, whose end is never reached: else workers would ask each other at each whether there is one."""
    return batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def worker_addresses(strategy: tf.distribute.Strategy) -> list[str]:
    """`host:port` of every worker, by number; empty where there is one."""
    resolver = strategy.cluster_resolver
    members = resolver.cluster_spec().as_dict() if resolver is not None else {}
    return [*members.get("chief", []), *members.get("worker", [])]


def mean_over_workers(strategy: tf.distribute.Strategy, numbers: Sequence[float]) -> list[float]:
    """The mean of what each worker gives, number by number, exact for whole ones; all must call it together."""

    def total() -> tf.Tensor:
        mine = tf.constant(numbers, tf.float64)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, mine)

    # A function, since TensorFlow warns of collectives outside of one.
    everyone = tf.function(lambda: strategy.run(total))()
    # Each replica of a worker has added its numbers.
    sums = strategy.experimental_local_results(everyone)[0].numpy()
    return [float(number) / strategy.num_replicas_in_sync for number in sums]


def _multi_worker(
    cluster: ClusterAddress | None, settings: Train, *, has_gpus: bool
) -> tf.distribute.Strategy:
    if cluster is not None and os.environ.get("TF_CONFIG"):
        raise UsageError("The cluster must be described once: either --nodes or TF_CONFIG. Received: both.")
    if cluster is None and not _tf_config_workers() and slurm_tasks(os.environ) > 1:
        cluster = slurm_address(os.environ, has_gpus=has_gpus)
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if cluster is not None:
        # Not by way of TF_CONFIG: it would stay in this process, and in those that it starts.
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": meet(cluster)}),
            task_type="worker",
            task_id=cluster.node_rank,
            rpc_layer="grpc",
        )
    elif not _tf_config_workers():
        raise UsageError(
            "train.strategy=multi_worker needs a description of the cluster: --nodes N --node-rank R "
            "--master host:port, the variable TF_CONFIG, or a SLURM job of several tasks. Received: none."
        )
    _configure_tensorflows_watch(
        resolver.cluster_spec().as_dict(), settings.worker_timeout_seconds, met=cluster is not None
    )
    implementation = tf.distribute.experimental.CommunicationImplementation
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(
            cluster_resolver=resolver,
            communication_options=tf.distribute.experimental.CommunicationOptions(
                implementation=implementation.NCCL if has_gpus else implementation.RING
            ),
        )
    except tf.errors.OpError as error:
        raise TransientError(
            "All workers must come to the start of the cluster. One has ended, or is out of reach; its own message "
            f"says why. Start the same command on all machines. TensorFlow says: {str(error)[:800]}"
        ) from error


def _configure_tensorflows_watch(jobs: dict[str, list[str]], timeout_seconds: float, *, met: bool) -> None:
    """TensorFlow's own heartbeat is to come after ours, which can say who is lost.

    Its coordination service gives up a worker after 10 s of silence and has no public setting. This is
    what `MultiWorkerMirroredStrategy` configures where nobody has, with another time. Workers that have `met`
    were all there a moment ago: who does not come then is lost, and not waited for as long.
    """
    leader = "chief" if jobs.get("chief") else "worker"
    tf_context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{leader}/replica:0/task:0",
        heartbeat_timeout_in_ms=round(2000 * timeout_seconds),  # 0: as TensorFlow has it
        cluster_register_timeout_in_ms=round(1000 * (max(START_SECONDS, timeout_seconds) if met else 600)),
        coordinated_jobs=[
            coordination_config_pb2.CoordinatedJob(name=job, num_tasks=len(jobs[job]))
            for job in ("chief", "worker")
            if jobs.get(job)
        ],
    )
    # Else worker 0 registers alone, and waits for the others without end.
    tf_context.context().coordination_service.cluster_register_with_barrier = True


def _split_cpu(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        # TensorFlow has started; fine if it started with as many.
        if len(tf.config.list_logical_devices("CPU")) != count:
            raise UsageError(
                f"train.logical_cpus={count} must be set before TensorFlow starts, and this process already "
                f"uses {len(tf.config.list_logical_devices('CPU'))} logical CPU(s): start a new process."
            ) from None


def _tf_config_workers() -> int:
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return 0
    try:
        described = json.loads(text)
        members = described.get("cluster", {})
        if members and not {"type", "index"} <= described.get("task", {}).keys():
            raise ValueError("task.type and task.index are missing")
        return len(members.get("worker", [])) + len(members.get("chief", []))
    except (ValueError, AttributeError) as error:
        raise UsageError(
            'TF_CONFIG must be JSON such as {"cluster": {"worker": ["host:port", ...]}, '
            f'"task": {{"type": "worker", "index": 0}}}}. Received: {text[:200]!r} ({error}).'
        ) from error


# Settings of one machine: where its images lie, and how fast it reads them. The names of the images are compared.
MAY_DIFFER: dict[str, Any] = {
    "data": {
        "path",
        "kind",
        "threads",
        "processes",
        "prefetch_batches",
        "service",
        "max_bad_share",
        "validation_path",
    },
    "train": {"strategy", "logical_cpus"},
    "subset": True,
}
_SHOWN = 20  # differences


def check_alike(strategy: tf.distribute.Strategy, recipe: AnyRecipe, **more: Any) -> None:
    """Refuses to train unless all workers have the same; all must come here together.

    Nothing in the training itself would tell: gradients of other images, or other steps of the schedule, are
    summed all the same.

    Args:
        strategy: of all workers.
        recipe: all settings; those of one machine may differ.
        **more: what else must be the same, as JSON has it, by name.

    Raises:
        UsageError: something differs; on all workers.
    """
    if topology(strategy).workers == 1:
        return
    mine = {**recipe.model_dump(mode="json", exclude=MAY_DIFFER), **more}
    everyone = [json.loads(text) for text in _texts(strategy, json.dumps(mine))]
    if found := differences(everyone):
        left = f"\n  ... and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UsageError(
            "All workers must train by the same settings, on the same images, from the same weights. Received:\n"
            + "\n".join(found[:_SHOWN])
            + left
            + "\nGive the same recipe and the same options on every machine, and the same files: a copy that is not "
            "whole, or an older one, is the likeliest cause where images differ."
        )


def differences(everyone: Sequence[Mapping[str, Any]]) -> list[str]:
    """What workers have other than worker 0, a line each."""
    return [
        f"  worker {worker} has {name} {theirs!r}, worker 0 has {first!r}"
        for worker, facts in enumerate(everyone)
        for name, first, theirs in _pairs(everyone[0], facts, "")
    ]


def _pairs(first: Any, other: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(first, dict) and isinstance(other, dict):
        for key in sorted(first.keys() | other.keys()):
            yield from _pairs(first.get(key), other.get(key), f"{name}.{key}".lstrip("."))
    elif first != other:
        yield name, first, other


def _texts(strategy: tf.distribute.Strategy, mine: str) -> list[str]:
    """The text of every worker, by number."""
    coded = mine.encode()
    lengths = _gather(strategy, np.array([len(coded)]))[:, 0]
    padded = coded.ljust(4 * -(-int(lengths.max()) // 4))
    rows = _gather(strategy, np.frombuffer(padded, "<u4"))
    return [row.astype("<u4").tobytes()[:length].decode() for row, length in zip(rows, lengths, strict=True)]


def _gather(strategy: tf.distribute.Strategy, numbers: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Every worker's whole numbers, from 0 to 2**32, a row each: (workers, numbers)."""
    team = topology(strategy)
    table = np.zeros((team.workers, len(numbers)))
    table[team.worker] = numbers
    # The others give zero, so a sum is one worker's number.
    sums = np.array(mean_over_workers(strategy, table.ravel().tolist())) * team.workers
    return np.rint(sums).astype(np.int64).reshape(table.shape)
