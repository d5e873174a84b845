"""The complete training state of a model as named arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.model.replicas import gather_from_replicas
from swav_tf.plumbing.errors import SwavError
from swav_tf.runs.checkpoint import CheckpointError

LISTED: Final = 6  # arrays that do not fit, in an error message


def named_variables(model: ReplicatedModel, parts: Sequence[str] = ()) -> dict[str, keras.Variable]:
    """Return the variables of some parts of a model, by default all, by name: the part, then Keras' path."""
    named: dict[str, keras.Variable] = {}
    for part in parts or model.parts:
        layer = getattr(model, part)
        # A layer's path may start with its model's name, which the part repeats.
        weights = {f"{part}/{v.path.removeprefix(f'{part}/')}": v for v in layer.weights}
        if len(weights) != len(layer.weights):
            raise AssertionError("two weights share a path")
        known = {id(variable) for variable in layer.weights}
        seeds = [variable for variable in layer.variables if id(variable) not in known]  # of dropouts
        # By number, since Keras names them by how many this process has created before.
        named |= weights | {f"{part}/seeds/{number}": variable for number, variable in enumerate(seeds)}
    return named


def assign_arrays(
    variables: Mapping[str, keras.Variable],
    arrays: Mapping[str, np.ndarray],
    *,
    what: str,
    remedy: str = "",
    error: type[SwavError] = CheckpointError,
) -> None:
    """Assign arrays to variables by name; there may be more arrays.

    Raises:
        SwavError: arrays are missing or have another shape; nothing is assigned. It is an `error` whose message
            begins with `what` and ends with `remedy`.
    """
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    if wrong := _misfits(shapes, {name: array for name, array in arrays.items() if name in shapes}):
        raise error("\n  ".join([f"{what}:", *wrong]) + (f"\n{remedy}" if remedy else ""))
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _misfits(shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Describe arrays that are missing, superfluous or of another shape, one line each; the first ones of many."""
    found = {name: array.shape for name, array in arrays.items()}
    wrong = [
        f"{name}: must be {shapes.get(name, 'absent')}, is {found.get(name, 'missing')}"
        for name in sorted(shapes.keys() | found.keys())
        if found.get(name) != shapes.get(name)
    ]
    more = [f"and {len(wrong) - LISTED} more"] if len(wrong) > LISTED else []
    return wrong[:LISTED] + more


def _buffers(model: ReplicatedModel) -> dict[str, keras.Variable]:
    names = {id(variable): name for name, variable in named_variables(model).items()}
    return {
        f"{kind}/{names[id(variable)]}": buffer
        for kind, buffers in model.optimizer.buffers.items()
        for variable, buffer in zip(model.trainable_variables, buffers, strict=True)
    }


def _scalars(model: ReplicatedModel) -> dict[str, Any]:
    return {
        "optimizer/iterations": model.optimizer.iterations,
        "loss_scale/factor": model.loss_scale.factor,
        "loss_scale/finite_steps": model.loss_scale.finite_steps,
    }


def capture(model: ReplicatedModel, *, batch_size: int, is_chief: bool = True) -> dict[str, np.ndarray]:
    """Return the complete state as arrays; nothing on other workers, which must call this to gather all queues."""
    queues = None if model.queue is None else _gather_queues(model, batch_size)
    if not is_chief:
        return {}
    variables = named_variables(model) | _buffers(model)
    arrays = {name: variable.numpy() for name, variable in variables.items()}
    arrays |= {name: scalar.numpy().reshape(1) for name, scalar in _scalars(model).items()}
    if queues is not None:
        arrays["queue/projections"], arrays["queue/pushed"] = queues
    return arrays


def restore(model: ReplicatedModel, arrays: Mapping[str, np.ndarray], *, batch_size: int) -> None:
    """Restore captured state, on any number of replicas.

    Raises:
        CheckpointError: arrays are missing, superfluous, or have another shape; nothing is restored.
    """
    variables, scalars = named_variables(model) | _buffers(model), _scalars(model)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    shapes |= dict.fromkeys(scalars, (1,))
    if model.queue is not None:
        crops, length, dim = model.queue.projections.shape
        shapes["queue/projections"] = (crops, length * model.distribute_strategy.num_replicas_in_sync, dim)
        shapes["queue/pushed"] = (1,)
    if wrong := _misfits(shapes, arrays):
        raise CheckpointError("\n  ".join(["The checkpoint does not fit the recipe:", *wrong]))
    for name, variable in variables.items():
        variable.assign(arrays[name])
    for name, scalar in scalars.items():
        scalar.assign(arrays[name][0])
    if model.queue is not None:
        _scatter_queues(model, arrays["queue/projections"], int(arrays["queue/pushed"][0]), batch_size)


# A replica's queue is (crops, slots * b, D) with b = B / replicas. A checkpoint contains the queue of the global
# batch, (crops, slots * B, D), so that a run can resume on another number of replicas. Its rows are ordered by batch,
# newest first, then by replica, then as the replica pushed them.


def join_queues(queues: np.ndarray, *, batch_size: int) -> np.ndarray:
    """Join the queues (replicas, crops, length, D) to that of the global batch (crops, replicas * length, D)."""
    replicas, crops, length, dim = queues.shape
    slots = length * replicas // batch_size
    by_slot = queues.reshape(replicas, crops, slots, length // slots, dim).transpose(1, 2, 0, 3, 4)
    return by_slot.reshape(crops, replicas * length, dim)


def split_queue(queue: np.ndarray, *, replicas: int, batch_size: int) -> np.ndarray:
    """Split a queue of the global batch between any number of replicas: each gets its rows of every batch."""
    crops, total, dim = queue.shape
    by_replica = queue.reshape(crops, total // batch_size, replicas, -1, dim).transpose(2, 0, 1, 3, 4)
    return by_replica.reshape(replicas, crops, total // replicas, dim)


def _gather_queues(model: ReplicatedModel, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    strategy, queue = model.distribute_strategy, model.queue
    assert queue is not None

    @tf.function(autograph=False)
    def gather() -> tuple[tf.Tensor, tf.Tensor]:
        return strategy.run(
            lambda: (gather_from_replicas(queue.projections.read_value()), queue.pushed.read_value())
        )

    queues, pushed = (strategy.experimental_local_results(value)[0].numpy() for value in gather())
    return join_queues(queues, batch_size=batch_size), np.int64(pushed * len(queues)).reshape(1)


def _scatter_queues(model: ReplicatedModel, projections: np.ndarray, pushed: int, batch_size: int) -> None:
    strategy, queue = model.distribute_strategy, model.queue
    assert queue is not None
    replicas = strategy.num_replicas_in_sync
    shares = split_queue(projections, replicas=replicas, batch_size=batch_size)
    own = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(shares[context.replica_id_in_sync_group])
    )

    @tf.function(autograph=False)
    def scatter(own: tf.Tensor) -> None:
        def assign(share: tf.Tensor) -> None:
            queue.projections.assign(share)
            queue.pushed.assign(tf.constant(pushed // replicas, tf.int64))

        strategy.run(assign, args=(own,))

    scatter(own)
