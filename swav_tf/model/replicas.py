"""Collective operations of the replicas of a `tf.distribute` strategy.

Call them in replica context: inside `strategy.run`, or without a strategy, with one replica. Never call them under a
`tf.cond`: a collective that only some replicas reach hangs the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def replica_count() -> int:
    """Return the number of replicas over all workers."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def sum_over_replicas(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sum float32 tensors over all replicas, all of them in ONE all-reduce.

    The tensors are sent as one flat vector: unless it is large, a collective costs its latency, not its size.
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
    """Stack a tensor of equal shape from all replicas: (replicas, *shape)."""
    stacked = tf.convert_to_tensor(tensor)[tf.newaxis]
    if replica_count() == 1:
        return stacked
    return tf.distribute.get_replica_context().all_gather(stacked, axis=0)


# A variable, a function of it and of further arguments, and these.
Update = tuple[tf.Variable, Callable[..., Any], tuple[Any, ...]]


def update_on_all_replicas(updates: Sequence[Update]) -> None:
    """Run `update(variable, *arguments)` on each device's copy of each mirrored variable.

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
    """Create a variable of which each replica reads and writes its own copy."""
    return tf.Variable(
        initial_value,
        trainable=False,
        name=name,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.NONE,
    )
