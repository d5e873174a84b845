"""Small SwAV models and batches of crops."""

import keras
import numpy as np
import tensorflow as tf

from swav_tf.recipe.pretraining import Recipe
from swav_tf.training.build import build_swav
from tests.replicas import REPLICAS
from tests.tiny_network import TINY

PROTOTYPES = 12
SMALL = {"name": "resnet_small"}  # the smallest network that users have
RECIPE = {
    "name": "tiny",
    "data": {"kind": "digits", "evaluation": {"resize": 32, "crop": 32}, "threads": 1},
    "crops": [{"count": 2, "size": 16, "scale": (0.4, 1)}, {"count": 2, "size": 12, "scale": (0.2, 0.5)}],
    "model": {"backbone": {"name": TINY}, "head_hidden": 24, "projection_dim": 16, "prototypes": PROTOTYPES},
    "method": {"epsilon": 0.05},
    "optimizer": {"peak_learning_rate": 2.0},
    "train": {"epochs": 2, "batch_size": 8, "precision": "float32"},
    "checkpoint": {},
    "monitor": {"tensorboard": False, "log_every_steps": 1, "view_images": 0},
}  # fmt: skip


def tiny_recipe(**changes) -> Recipe:
    """Return a recipe that trains in seconds; `changes` are section__field=value."""
    recipe = {name: dict(value) if isinstance(value, dict) else value for name, value in RECIPE.items()}
    for key, value in changes.items():
        section, field = key.split("__")
        recipe[section][field] = value
    return Recipe(**recipe)


def batches_of_crops(recipe: Recipe, count: int, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    draw, size = np.random.default_rng(seed), recipe.train.batch_size
    shapes = [(size, group.count, group.size, group.size, 3) for group in recipe.crops]
    return [tuple(draw.integers(0, 256, shape, dtype=np.uint8) for shape in shapes) for _ in range(count)]


def backbone_without_bn() -> keras.Model:
    """Return a network from crops of any size to 10 features, in which samples do not interact."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(10, 3, strides=2, activation="tanh", name="conv")(inputs)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def head_without_bn() -> keras.Model:
    inputs = keras.Input((10,))
    return keras.Model(inputs, keras.layers.Dense(16, name="projection")(inputs))


def train_mirrored(strategy, recipe, batches, weights, **build):
    """Train on two replicas, each with its contiguous share of the batch; return the model and the logs."""
    with strategy.scope():
        model = build_swav(recipe, **build)
    for variable, value in zip(model.weights, weights, strict=True):
        variable.assign(value)
    step, parts = model.make_train_function(), recipe.train.accumulation_steps
    logs = []
    for batch in batches:
        shares = [np.split(group, REPLICAS * parts) for group in batch]

        def micro_batch(part, shares=shares):
            return tuple(
                strategy.experimental_distribute_values_from_function(
                    lambda context, share=share: tf.constant(
                        share[part * REPLICAS + context.replica_id_in_sync_group]
                    )
                )
                for share in shares
            )

        logs.append(step(iter([micro_batch(part) for part in range(parts)])))
    return model, logs
