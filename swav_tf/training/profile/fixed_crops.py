"""Batches of random crops that stay on the devices, and recipes of one device's share."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from swav_tf.recipe.pretraining import Recipe


def fixed_parts(recipe: Recipe, strategy: tf.distribute.Strategy) -> list[tuple[Any, ...]]:
    """A batch as the training function takes it: for each part of it, each replica's crops, on its device."""
    replicas, parts = strategy.num_replicas_in_sync, recipe.train.accumulation_steps
    size = recipe.train.batch_size // replicas // parts
    generator = np.random.default_rng(0)

    def crops(count: int, side: int) -> Any:
        array = generator.integers(0, 256, (size, count, side, side, 3), dtype=np.uint8)
        if replicas == 1:
            return tf.constant(array)
        return strategy.experimental_distribute_values_from_function(lambda _: tf.constant(array))

    # The same for every part: it costs the same, and less memory.
    once = tuple(crops(group.count, group.size) for group in recipe.crops)
    return [once] * parts


def with_batch(recipe: Recipe, batch_size: int, *, accumulation_steps: int) -> Recipe:
    """The recipe with another global batch, the queue at least as long as that."""
    queue = recipe.method.queue
    if queue.length:
        queue = queue.model_copy(update={"length": max(queue.length, batch_size)})
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(
                update={"batch_size": batch_size, "accumulation_steps": accumulation_steps}
            ),
            "method": recipe.method.model_copy(update={"queue": queue}),
        }
    )


def share_of_one(recipe: Recipe, replicas: int) -> Recipe:
    """What one replica computes at once, as a recipe for one device: its share of one part of the batch."""
    parts = replicas * recipe.train.accumulation_steps
    queue = recipe.method.queue.model_copy(update={"length": recipe.queue_length // replicas})
    return with_batch(
        recipe.model_copy(update={"method": recipe.method.model_copy(update={"queue": queue})}),
        recipe.train.batch_size // parts,
        accumulation_steps=1,
    )
