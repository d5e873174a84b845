"""What replicas exchange in a step, counted in the traced graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from swav_tf.method.swav import SwAV

COLLECTIVES = ("CollectiveReduce", "CollectiveGather", "NcclAllReduce")


@dataclass(frozen=True)
class Exchange:
    """Of one optimiser step and one replica."""

    collectives: int
    megabytes: float  # of the tensors that go in


def count_exchange(model: SwAV, parts: Sequence[Any], wishes: tf.Tensor) -> Exchange:
    """Counts by tracing what a step is made of; weights change where a batch comes in parts.

    Args:
        model: under its strategy.
        parts: each replica's crops, for each part of the batch.
        wishes: as the training function takes them.
    """
    on_replicas, replicas = model.on_replicas, model.distribute_strategy.num_replicas_in_sync
    if len(parts) == 1:
        found = [_of(on_replicas(model.train_step), (parts[0], wishes), 1)]
    else:
        look, assign = on_replicas(model._look), on_replicas(model._codes_of_parts)
        accumulate, finish = on_replicas(model._accumulate), on_replicas(model._finish)
        looks = [look(part) for part in parts]
        projections, codes = assign(looks)
        losses = [accumulate(part, share) for part, share in zip(parts, codes, strict=True)]
        found = [
            _of(look, (parts[0],), len(parts)),
            _of(assign, (looks,), 1),
            _of(accumulate, (parts[0], codes[0]), len(parts)),
            _of(finish, (losses, projections, codes, wishes), 1),
        ]
    count, size = (sum(values) for values in zip(*found, strict=True))
    return Exchange(int(count // replicas), size / replicas / 1e6)


def _of(function: Any, arguments: tuple[Any, ...], times: int) -> tuple[int, int]:
    """Collectives over all replicas and their bytes, of a function that a step calls so many times."""
    operations = [
        operation
        for operation in function.get_concrete_function(*arguments).graph.get_operations()
        if operation.type.startswith(COLLECTIVES)
    ]
    sizes = [int(np.prod(op.inputs[0].shape)) * op.inputs[0].dtype.size for op in operations]
    return times * len(operations), times * sum(sizes)
