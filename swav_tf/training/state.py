"""Everything of a model that the next step depends on, as named arrays."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from swav_tf.method.replicated_model import ReplicatedModel
from swav_tf.model.replicas import gather_from_replicas
from swav_tf.runs.checkpoint import CheckpointError


def named_variables(model: ReplicatedModel) -> dict[str, keras.Variable]:
    """The variables by name: part of the model, then Keras' path of the variable."""
    named: dict[str, keras.Variable] = {}
    for part in model.parts:
        named |= named_variables_of(part, getattr(model, part))
    return named


def named_variables_of(part: str, layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """The variables of one part of a model by name: its weights, and the states of its dropouts' random numbers."""
    # A layer's path starts with its model's or its own name; the part says that already.
    named = {f"{part}/{v.path.removeprefix(f'{part}/')}": v for v in layer.weights}
    if len(named) != len(layer.weights):
        raise AssertionError("two weights share a path")
    weights = {id(variable) for variable in layer.weights}
    seeds = [variable for variable in layer.variables if id(variable) not in weights]
    # By number: Keras names them by how many this process has made before.
    return named | {f"{part}/seeds/{number}": variable for number, variable in enumerate(seeds)}


def misfits(variables: Mapping[str, keras.Variable], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The variables for which there is no array, or one of another shape, in words."""
    return [
        f"{name}: must be {tuple(variable.shape)}, is {arrays[name].shape if name in arrays else 'missing'}"
        for name, variable in variables.items()
        if name not in arrays or arrays[name].shape != tuple(variable.shape)
    ]


def capture(model: ReplicatedModel, *, batch_size: int) -> dict[str, np.ndarray]:
    """All state as arrays. Every worker must call it, since the queues of all replicas are gathered.

    Args:
        model: under any strategy.
        batch_size: the global batch, of which the queue holds a whole number.
    """
    weights = named_variables(model)
    arrays = {name: variable.numpy() for name, variable in weights.items()}
    names = {id(variable): name for name, variable in weights.items()}
    for variable, momentum in zip(model.trainable_variables, model.optimizer.momentums, strict=True):
        arrays[f"momentum/{names[id(variable)]}"] = momentum.numpy()
    arrays["optimizer/iterations"] = np.int64(model.optimizer.iterations.numpy()).reshape(1)
    arrays["loss_scale/factor"] = model.loss_scale.factor.numpy().reshape(1)
    arrays["loss_scale/finite_steps"] = model.loss_scale.finite_steps.numpy().reshape(1)
    if model.queue is not None:
        arrays["queue/projections"], arrays["queue/pushed"] = _gather_queues(model, batch_size)
    return arrays


def restore(model: ReplicatedModel, arrays: Mapping[str, np.ndarray], *, batch_size: int) -> None:
    """Puts captured state back, on any number of replicas.

    Raises:
        CheckpointError: arrays are missing, left over, or of another shape; nothing is loaded then.
    """
    weights = named_variables(model)
    names = {id(variable): name for name, variable in weights.items()}
    targets = dict(weights)
    for variable, momentum in zip(model.trainable_variables, model.optimizer.momentums, strict=True):
        targets[f"momentum/{names[id(variable)]}"] = momentum
    scalars = {
        "optimizer/iterations": model.optimizer.iterations,
        "loss_scale/factor": model.loss_scale.factor,
        "loss_scale/finite_steps": model.loss_scale.finite_steps,
    }
    shapes = {name: tuple(target.shape) for name, target in targets.items()} | dict.fromkeys(scalars, (1,))
    if model.queue is not None:
        crops, length, dim = model.queue.projections.shape
        shapes["queue/projections"] = (crops, length * model.distribute_strategy.num_replicas_in_sync, dim)
        shapes["queue/pushed"] = (1,)
    wrong = [
        f"{name}: must be {shapes.get(name, 'absent')}, is {arrays[name].shape if name in arrays else 'missing'}"
        for name in sorted(shapes.keys() | arrays.keys())
        if name not in arrays or name not in shapes or arrays[name].shape != shapes[name]
    ]
    if wrong:
        raise CheckpointError("The checkpoint does not fit the recipe:\n  " + "\n  ".join(wrong))
    for name, target in targets.items():
        target.assign(arrays[name])
    for name, target in scalars.items():
        target.assign(arrays[name][0])
    if model.queue is not None:
        _scatter_queues(model, arrays["queue/projections"], int(arrays["queue/pushed"][0]), batch_size)


# A replica's queue is (crops, slots * b, D) with b = batch / replicas; saved is the queue of the whole batch,
# (crops, slots * B, D), so that a run may go on with another number of replicas. Its rows come batch by batch,
# the newest first; those of a batch by replica, and a replica's as it pushed them, part by part.


def join_queues(queues: np.ndarray, *, batch_size: int) -> np.ndarray:
    """The replicas' queues (replicas, crops, length, D) as one of the whole batch (crops, replicas * length, D).

    Args:
        queues: by replica; each holds its share of whole batches, newest first.
        batch_size: the global batch.
    """
    replicas, crops, length, dim = queues.shape
    slots = length * replicas // batch_size
    by_slot = queues.reshape(replicas, crops, slots, length // slots, dim).transpose(1, 2, 0, 3, 4)
    return by_slot.reshape(crops, replicas * length, dim)


def split_queue(queue: np.ndarray, *, replicas: int, batch_size: int) -> np.ndarray:
    """The other way round, for any number of replicas that can share the batch: each gets its rows of every batch."""
    crops, total, dim = queue.shape
    by_replica = queue.reshape(crops, total // batch_size, replicas, -1, dim).transpose(2, 0, 1, 3, 4)
    return by_replica.reshape(replicas, crops, total // replicas, dim)


def _gather_queues(model: ReplicatedModel, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    strategy, queue = model.distribute_strategy, model.queue
    assert queue is not None

    @tf.function
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

    @tf.function
    def scatter(own: tf.Tensor) -> None:
        def assign(share: tf.Tensor) -> None:
            queue.projections.assign(share)
            queue.pushed.assign(tf.constant(pushed // replicas, tf.int64))

        strategy.run(assign, args=(own,))

    scatter(own)
