"""The distribution strategy of a job, and the topology of its replicas and workers."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.data.ops import multi_device_iterator_ops
from tensorflow.python.eager import context as tf_context

from swav_tf.data.survey import this_machine
from swav_tf.plumbing.errors import TransientError, UsageError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.names import counted
from swav_tf.plumbing.values import nested_diff
from swav_tf.recipe.files import AnyRecipe
from swav_tf.recipe.pretraining import Train
from swav_tf.training.rendezvous import (
    ClusterAddress,
    Meeting,
    described_workers,
    meet,
    slurm_address,
    slurm_tasks,
    tf_config_workers,
)
from swav_tf.training.stopping import exit_now, stoppable

START_SECONDS = 60.0  # in which workers that have met must start TensorFlow

# cuDNN's fused half-precision batch normalization, with the ReLU and the sum that follow. TensorFlow disables it by
# default, and a step on an H200 then takes 2.3 times as long (docs/performance.md). It overflows slightly earlier,
# which the loss scale handles like any overflow. A value that the user has set is kept.
FUSED_BATCH_NORM = "TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT"


@dataclass(frozen=True)
class Topology:
    """The worker processes, and the replicas (devices) of all of them."""

    kind: str
    workers: int
    worker: int  # this process, 0 <= worker < workers
    replicas: int
    devices: str  # GPU or CPU

    @property
    def is_chief(self) -> bool:
        """Return whether this process writes the run folder."""
        return self.worker == 0


def topology(strategy: tf.distribute.Strategy) -> Topology:
    """Return the topology of a strategy."""
    devices = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    kind = "mirrored" if isinstance(strategy, tf.distribute.MirroredStrategy) else "one device"
    workers, worker = 1, 0
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        kind, resolver = "multi worker", strategy.cluster_resolver
        workers, worker = len(resolver.cluster_spec().as_dict()["worker"]), int(resolver.task_id)
    return Topology(kind, workers, worker, replicas=int(strategy.num_replicas_in_sync), devices=devices)


# === Strategy ===


def build_strategy(
    settings: Train, cluster: ClusterAddress | None = None
) -> tuple[tf.distribute.Strategy, Meeting | None]:
    """Build the strategy that a recipe requests; call it before any other TensorFlow work.

    The meeting of its workers is None if there is only one.

    `auto` selects several workers if a cluster is described (`cluster`, TF_CONFIG or SLURM), else all visible GPUs
    (or `logical_cpus`), else one device.

    Raises:
        UsageError: the request cannot be met, or would be ignored.
        TransientError: not all workers started.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and not settings.logical_cpus:
        _check_no_gpu_is_missed(settings.precision)
    _configure_devices(settings, gpus)
    kind = settings.strategy
    if kind == "auto":
        if cluster is not None or described_workers(os.environ) > 1:
            kind = "multi_worker"
        else:
            kind = "mirrored" if len(gpus) > 1 or settings.logical_cpus > 1 else "one_device"
    if cluster is not None and kind != "multi_worker":
        raise UsageError(f"--nodes needs train.strategy=auto or multi_worker. Received: {kind}.")
    if kind == "multi_worker":
        if settings.logical_cpus > 1:
            raise UsageError(
                f"train.logical_cpus={settings.logical_cpus} splits one process's CPU into replicas; each of several "
                "workers has one. Omit it, or start more workers."
            )
        return _multi_worker(cluster, settings, has_gpus=bool(gpus))
    if kind == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return mirrored(tuple(device.name for device in devices)), None
    return tf.distribute.get_strategy(), None


def _check_no_gpu_is_missed(precision: str) -> None:
    """Refuse half precision, or warn, if TensorFlow finds none of this machine's GPUs; its own warning is not shown."""
    if not (gpus := this_machine().gpus):
        return
    # Not the extra `gpu`: its onnxruntime-gpu would overwrite the onnxruntime of `export`.
    message = (
        f"TensorFlow must find this machine's NVIDIA GPUs. Received: 0 of {gpus}, so the CPU would train in "
        f"{precision} (float16 is about a hundred times slower there than float32). Usually CUDA's libraries are "
        "missing: pip install 'tensorflow[and-cuda]' nvidia-ml-py; TF_CPP_MIN_LOG_LEVEL=0 shows TensorFlow's own "
        "reason. To train on the CPU on purpose: CUDA_VISIBLE_DEVICES=-1 swav-tf ... -o train.precision=float32"
    )
    if precision != "float32":
        raise UsageError(message)
    log.warning("%s", message)


@functools.cache
def mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """Return the one mirrored strategy of this process over these devices.

    Two of them would number their collectives equally, and TensorFlow then aborts those of the second one
    ("Collective instance 100 expected type ...").
    """
    return tf.distribute.MirroredStrategy(list(devices))


def _configure_devices(settings: Train, gpus: Sequence[tf.config.PhysicalDevice]) -> None:
    os.environ.setdefault(FUSED_BATCH_NORM, "1")  # read at the first batch normalization on a GPU
    if settings.logical_cpus and gpus:
        raise UsageError(
            f"train.logical_cpus={settings.logical_cpus} splits the CPU into replicas, for trials without a GPU; this "
            f"machine has {counted(len(gpus), 'GPU')}, which would be used instead. Omit it, or hide them: "
            "CUDA_VISIBLE_DEVICES=-1 swav-tf ..."
        )
    if settings.logical_cpus > 1:
        _split_cpu(settings.logical_cpus)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # too late if a notebook has used it already
            tf.config.experimental.set_memory_growth(gpu, True)
    # By default TensorFlow rounds float32 products to 10 bits on Ampere and later, also in Sinkhorn and the scores.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    _start_no_autotune_threads()


@functools.cache
def _start_no_autotune_threads() -> None:
    """Turn off autotuning in the iterator that `tf.distribute` adds for each device, which has no setting for it.

    The end of an iterator waits for its autotune thread, which can miss the wake-up and sleep for up to a minute: a
    worker that is done would keep its node as long. There is nothing to tune: the buffer's size is given.
    """
    create = multi_device_iterator_ops._create_device_dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    multi_device_iterator_ops._create_device_dataset = lambda *a, **k: create(*a, **k).with_options(options)


def _split_cpu(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        # TensorFlow has started; fine if it started with as many.
        if len(tf.config.list_logical_devices("CPU")) != count:
            raise UsageError(
                f"train.logical_cpus={count} must be set before TensorFlow starts, and this process already "
                f"uses {counted(len(tf.config.list_logical_devices('CPU')), 'logical CPU')}: start a new process."
            ) from None


def _multi_worker(
    cluster: ClusterAddress | None, settings: Train, *, has_gpus: bool
) -> tuple[tf.distribute.Strategy, Meeting | None]:
    if cluster is not None and os.environ.get("TF_CONFIG"):
        raise UsageError("The cluster must be described once: either --nodes or TF_CONFIG. Received: both.")
    workers, own = tf_config_workers(os.environ)
    if cluster is None and not workers and slurm_tasks(os.environ) > 1:
        cluster = slurm_address(os.environ, has_gpus=has_gpus)
    meeting = None
    if cluster is not None:
        meeting = _meet(cluster)
        workers, own = meeting.workers, cluster.node_rank
    elif len(workers) > 1:  # they then listen at the ports of TF_CONFIG
        meeting = _meet(ClusterAddress(len(workers), own, workers[0]))
    elif not workers:
        raise UsageError(
            "train.strategy=multi_worker needs a description of the cluster: --nodes N --node-rank R "
            "--master host:port, the variable TF_CONFIG, or a SLURM job of several tasks. Received: none."
        )
    _configure_coordination(len(workers), settings.worker_timeout_seconds)
    # Not through TF_CONFIG, which would be inherited by the processes that this one starts.
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(workers)}), task_type="worker", task_id=own, rpc_layer="grpc"
    )
    implementation = tf.distribute.experimental.CommunicationImplementation
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(
            cluster_resolver=resolver,
            communication_options=tf.distribute.experimental.CommunicationOptions(
                implementation=implementation.NCCL if has_gpus else implementation.RING
            ),
        )
    except tf.errors.OpError as error:
        raise TransientError(
            "The TensorFlow cluster could not start: a worker has exited or cannot be reached. See that worker's "
            f"error, then start the same command on all machines. TensorFlow's error: {str(error)[:800]}"
        ) from error
    return strategy, meeting if meeting and meeting.connections else None


def _meet(cluster: ClusterAddress) -> Meeting:
    """Meet before TensorFlow starts: it waits without a word, and no signal ends it."""
    with stoppable(exit_now):  # nothing has to be saved
        return meet(cluster)


def _configure_coordination(workers: int, timeout_seconds: float) -> None:
    """Let TensorFlow's own heartbeat time out after that of heartbeat.py, which names the lost worker.

    TensorFlow's coordination service gives up a worker after 10 s of silence and has no public setting. This is what
    `MultiWorkerMirroredStrategy` configures by default, with other times. The workers have met a moment ago, so the
    wait for them is short.
    """
    tf_context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        heartbeat_timeout_in_ms=round(2000 * timeout_seconds),  # 0: TensorFlow's default
        cluster_register_timeout_in_ms=round(1000 * max(START_SECONDS, timeout_seconds)),
        coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=workers)],
    )
    # Otherwise worker 0 registers alone and waits for the others forever.
    tf_context.context().coordination_service.cluster_register_with_barrier = True


# === Work on all workers ===


def batches_on_devices(
    strategy: tf.distribute.Strategy, batches: Callable[[], tf.data.Dataset]
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Return this worker's batches, which are copied to each replica's device while the step before computes.

    `tf.distribute` does that for several devices. On one GPU the batches would stay in the host's memory, and each
    step would begin with the copy. `batches` makes one replica's share of a part of a batch after the other.
    """
    gpus = tf.config.list_logical_devices("GPU")
    several = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    if gpus and not isinstance(strategy, several):
        return batches().apply(tf.data.experimental.prefetch_to_device(gpus[0].name, buffer_size=1))
    # Of a data set that may end, workers would ask each other before each batch whether one is left.
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return strategy.distribute_datasets_from_function(lambda _: batches().apply(endless))


def mean_over_workers(strategy: tf.distribute.Strategy, numbers: Sequence[float]) -> list[float]:
    """Return the mean of each number over all workers, which must call it together; exact for integers."""

    def total() -> tf.Tensor:
        own = tf.constant(numbers, tf.float64)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own)

    # TensorFlow warns of collectives outside of a function, and of one that it traces at every call; a partial function
    # is new to it each time.
    totals = tf.function(functools.partial(strategy.run, total), autograph=False)()
    # Each replica of a worker has added its numbers.
    sums = strategy.experimental_local_results(totals)[0].numpy()
    return [float(number) / strategy.num_replicas_in_sync for number in sums]


# Settings of one machine: where its images are, and how fast it reads them. The names of the images are compared.
MAY_DIFFER: dict[str, Any] = {
    "data": {"path", "kind", "threads", "processes", "prefetch_batches", "max_bad_share", "validation_path"},
    "train": {"strategy", "logical_cpus"},
    "subset": True,
}
MOST_SHOWN = 20  # differences


def check_workers_consistent(
    strategy: tf.distribute.Strategy, team: Topology, recipe: AnyRecipe, **values: Any
) -> None:
    """Check that all workers have the same settings and images; all must call it together.

    Training itself would not notice: gradients of other images, or other steps of the schedule, can be summed, too.
    Settings in MAY_DIFFER are not compared; `values` are further JSON values that must be equal.
    """
    if team.workers == 1:
        return
    own = {**recipe.model_dump(mode="json", exclude=MAY_DIFFER), **values}
    found = differences([json.loads(text) for text in _gather_texts(strategy, team, json.dumps(own))])
    if found:
        more = f"\n  ... and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        raise UsageError(
            "All workers must have the same settings, images and weights. Received:\n"
            + "\n".join(found[:MOST_SHOWN])
            + more
            + "\nUse the same recipe, options and files on every machine. If images differ, the likeliest cause is an "
            "incomplete or outdated copy."
        )


def differences(workers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe how workers differ from worker 0, one line each."""
    return [
        f"  worker {worker} has {name} {other!r}, worker 0 has {first!r}"
        for worker, values in enumerate(workers)
        for name, (first, other) in nested_diff(workers[0], values).items()
    ]


def _gather_texts(strategy: tf.distribute.Strategy, team: Topology, text: str) -> list[str]:
    """Return the text of every worker by number, padded with spaces."""
    coded = text.encode()
    longest = _gather(strategy, team, np.array([len(coded)])).max()
    rows = _gather(strategy, team, np.frombuffer(coded.ljust(4 * -(-longest // 4)), "<u4"))
    return [row.astype("<u4").tobytes().decode() for row in rows]


def _gather(strategy: tf.distribute.Strategy, team: Topology, row: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return every worker's integers, from 0 to 2**32, as (workers, integers)."""
    table = np.zeros((team.workers, len(row)))
    table[team.worker] = row
    # The others contribute zeros, so a sum is one worker's number.
    sums = np.array(mean_over_workers(strategy, table.ravel().tolist())) * team.workers
    return np.rint(sums).astype(np.int64).reshape(table.shape)
