"""What the replicas of a `tf.distribute` strategy do together.

Every function here is called in replica context (inside `strategy.run`, or with
no strategy at all: then there is one replica and nothing to exchange). None is
called under a `tf.cond`: a collective that only some replicas reach hangs the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def replica_count() -> int:
    """Replicas over all workers."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def sum_over_replicas(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sums float32 tensors over all replicas, all of them in ONE all-reduce.

    The tensors travel as one flat vector: a collective costs its latency, not its
    size, until it is large, and the count of collectives then is exact.
    """
    tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]
    if replica_count() == 1:
        return tensors
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    flat = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, flat)
    sizes = [tf.size(tensor) for tensor in tensors]
    parts = tf.split(flat, sizes, num=len(tensors))
    return [tf.reshape(part, tf.shape(tensor)) for part, tensor in zip(parts, tensors, strict=True)]


def gather_from_replicas(tensor: tf.Tensor) -> tf.Tensor:
    """Stacks a tensor of equal shape from all replicas: (replicas, *shape)."""
    stacked = tf.convert_to_tensor(tensor)[tf.newaxis]
    if replica_count() == 1:
        return stacked
    return tf.distribute.get_replica_context().all_gather(stacked, axis=0)


def update_on_all_replicas(
    updates: Sequence[tuple[tf.Variable, Callable[..., Any], tuple[Any, ...]]],
) -> None:
    """Runs `update(variable, *arguments)` on each device's copy of each mirrored variable.

    The arguments must be equal on all replicas (sum them first), or the copies drift apart.
    """
    variables = [variable for variable, _, _ in updates]
    functions = [function for _, function, _ in updates]

    def update(strategy: tf.distribute.Strategy, *all_arguments: tuple[Any, ...]) -> None:
        for variable, function, arguments in zip(variables, functions, all_arguments, strict=True):
            strategy.extended.update(variable, function, args=arguments, group=False)

    context = tf.distribute.get_replica_context()
    context.merge_call(update, args=tuple(arguments for _, _, arguments in updates))


def per_replica_variable(initial_value: tf.Tensor, name: str) -> tf.Variable:
    """A variable of which each replica has, reads and writes its own."""
    return tf.Variable(
        initial_value,
        trainable=False,
        name=name,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.NONE,
    )


def mirrored_variable(initial_value: tf.Tensor, name: str) -> tf.Variable:
    """A variable that is equal on all replicas; write it with `update_on_all_replicas`."""
    return tf.Variable(initial_value, trainable=False, name=name)
