"""Small SwAV models and batches of crops for tests."""

import keras
import numpy as np
import tensorflow as tf

from swav_tf.recipe.pretraining import Recipe
from swav_tf.training.build import build_swav
from tests.replicas import REPLICAS

PROTOTYPES = 12


def tiny_recipe(**changes) -> Recipe:
    """A recipe of seconds; `changes` are section__field=value."""
    recipe = {
        "name": "tiny",
        "data": {"kind": "digits", "evaluation": {"resize": 32, "crop": 32}, "threads": 1},
        "crops": [{"count": 2, "size": 16, "scale": (0.4, 1)}, {"count": 2, "size": 12, "scale": (0.2, 0.5)}],
        "model": {
            "backbone": {"name": "resnet_small"},
            "head_hidden": 24,
            "projection_dim": 16,
            "prototypes": PROTOTYPES,
        },
        "method": {"epsilon": 0.05},
        "optimizer": {"peak_learning_rate": 2.0},
        "train": {"epochs": 2, "batch_size": 8, "precision": "float32"},
        "checkpoint": {},
        "monitor": {"tensorboard": False, "log_every_steps": 1},
    }
    for key, value in changes.items():
        section, field = key.split("__")
        recipe[section][field] = value
    return Recipe(**recipe)


def batches_of_crops(recipe: Recipe, count: int, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(seed)
    size = recipe.train.batch_size
    return [
        tuple(rng.integers(0, 256, (size, g.count, g.size, g.size, 3), dtype=np.uint8) for g in recipe.crops)
        for _ in range(count)
    ]


def backbone_without_bn() -> keras.Model:
    """Crops of any size to 10 features; no sample sees another."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(10, 3, strides=2, activation="tanh", name="conv")(inputs)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def head_without_bn() -> keras.Model:
    inputs = keras.Input((10,))
    return keras.Model(inputs, keras.layers.Dense(16, name="projection")(inputs))


def train_mirrored(strategy, recipe, batches, weights, **build):
    """The same steps, each replica with its contiguous share of the batch."""
    with strategy.scope():
        model = build_swav(recipe, **build)
    for variable, value in zip(model.weights, weights, strict=True):
        variable.assign(value)
    step = model.make_train_function()
    parts = recipe.train.accumulation_steps
    logs = []
    for batch in batches:
        shares = [np.split(group, REPLICAS * parts) for group in batch]

        def micro(part, shares=shares):
            return tuple(
                strategy.experimental_distribute_values_from_function(
                    lambda context, s=share: tf.constant(
                        s[part * REPLICAS + context.replica_id_in_sync_group]
                    )
                )
                for share in shares
            )

        logs.append(step(iter([micro(part) for part in range(parts)])))
    return model, logs
