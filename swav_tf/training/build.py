"""From a recipe to a model that is ready for its first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras

from swav_tf.method.feature_queue import FeatureQueue
from swav_tf.method.loss_scale import LossScale
from swav_tf.method.swav import ASSIGN_CROPS, SwAV
from swav_tf.model.backbone import build_backbone
from swav_tf.model.head import Prototypes, build_head
from swav_tf.recipe import Recipe
from swav_tf.replicas import replica_count
from swav_tf.training.optimizers.lars import LARS
from swav_tf.training.optimizers.schedule import WarmupCosine


def build_swav(recipe: Recipe, *, steps_per_epoch: int = 1) -> SwAV:
    """A compiled SwAV model with the recipe's own seed, under the strategy in scope.

    Args:
        recipe: all settings.
        steps_per_epoch: optimiser steps an epoch; the schedule and the queue's start follow from it, so a
            model that is to be trained needs it. 1 will do for one that only computes features.

    Raises:
        RecipeError: no such backbone.
    """
    keras.utils.set_random_seed(recipe.train.seed)
    with dtype_policy(recipe.train.precision):
        backbone = build_backbone(recipe.model)
        head = build_head(recipe.model, feature_dim=backbone.output_shape[-1])
        prototypes = Prototypes(recipe.model.prototypes, name="prototypes")
    queue = None
    if recipe.queue_length:
        queue = FeatureQueue(
            length=recipe.queue_length // replica_count(),
            projection_dim=recipe.model.projection_dim,
            from_step=recipe.method.queue.from_epoch * steps_per_epoch,
            assign_crops=ASSIGN_CROPS,
        )
    model = SwAV(
        backbone=backbone,
        head=head,
        prototypes=prototypes,
        method=recipe.method,
        mean=recipe.augment.mean,
        std=recipe.augment.std,
        queue=queue,
        loss_scale=LossScale(enabled=recipe.train.precision == "mixed_float16"),
        accumulation_steps=recipe.train.accumulation_steps,
    )
    optimizer = LARS(
        WarmupCosine.of(recipe.optimizer, epochs=recipe.train.epochs, steps_per_epoch=steps_per_epoch),
        momentum=recipe.optimizer.momentum,
        weight_decay=recipe.optimizer.weight_decay,
        trust_coefficient=recipe.optimizer.trust_coefficient,
    )
    # Loss scaling is the model's own: Keras' decides on one replica's gradients.
    model.compile(optimizer=optimizer, jit_compile=False, auto_scale_loss=False)
    optimizer.build(model.trainable_variables)
    return model


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Layers made inside compute under this Keras dtype policy; the caller's own comes back after."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
