"""Parts of features by actors on a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from evaluate.feature_parts import Part
from evaluate.part_workers import Devices, Job, Maker, WorkerLost
from swav_tf.plumbing.errors import UsageError


def ray_starts(job: Callable[[int], Job], devices: Devices, cores: int) -> list[Callable[[], RayWorker]]:
    """Connect to the cluster, or start one on this machine; return what starts an actor for each device.

    Args:
        job: for a number of cores.
        devices: CPU actors, or actors with a GPU each, anywhere in the cluster.
        cores: of each actor; 0 for as many as the cluster has for all of them.

    Raises:
        UsageError: they do not fit into the cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    import ray

    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = actor_cores(nodes, devices, cores)
    return [lambda: RayWorker(job(cores), devices, cores)] * devices.count


def actor_cores(nodes: Sequence[Mapping[str, float]], devices: Devices, cores: int) -> int:
    """Return the cores of each actor: the given number, or for 0 the largest with which all fit into the cluster.

    Ray would let actors wait forever, without an error, that fit nowhere. Actors read their images themselves, so no
    core has to be left for readers.

    Args:
        nodes: the resources of each, `CPU` and `GPU`.
        devices: the actors.
        cores: 0, or a number.

    Raises:
        UsageError: they do not fit.
    """

    def room(cores: int) -> int:
        gpus = [node.get("GPU", 0) if devices.kind == "gpu" else float("inf") for node in nodes]
        return sum(int(min(node.get("CPU", 0) // cores, gpu)) for node, gpu in zip(nodes, gpus, strict=True))

    most = int(max(node.get("CPU", 0) for node in nodes))
    for number in [cores] if cores else range(most, 0, -1):
        if room(number) >= devices.count:
            return number
    have = ", ".join(f"{sum(node.get(kind, 0) for node in nodes):g} {kind}" for kind in ("CPU", "GPU"))
    least = cores or 1
    raise UsageError(
        f"--devices {devices} with {least} cores each must fit into the Ray cluster. Received: {have} on {len(nodes)} "
        f"nodes, room for {room(least)}. Use fewer devices or --threads, or start more nodes first."
    )


class RayWorker:
    """An actor, which Ray places where its cores and GPU are."""

    def __init__(self, job: Job, devices: Devices, cores: int) -> None:
        import ray

        gpus = int(devices.kind == "gpu")
        actor = ray.remote(num_cpus=cores, num_gpus=gpus)(_RayMaker)
        self._actor = actor.remote(job, devices.environment(cores), os.getcwd())

    def call(self, part: Part | None) -> Any:
        """See `Worker`."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            return ray.get(self._actor.call.remote(part))
        except RayActorError as error:
            raise WorkerLost(str(error).splitlines()[0].rstrip(".")) from error
        except RayTaskError as error:
            raise error.cause from None

    def kill(self) -> None:
        """See `Worker`."""
        import ray

        ray.kill(self._actor)


class _RayMaker(Maker):
    def __init__(self, job: Job, environment: Mapping[str, str], folder: str) -> None:
        with suppress(OSError):  # of relative paths, where nodes share the folder
            os.chdir(folder)
        super().__init__(job, environment)
