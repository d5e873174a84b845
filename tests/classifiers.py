"""Small classifiers, their recipes, and a pretraining run to start from."""

from pathlib import Path

import numpy as np

from swav_tf.method.loss_scale import LossScale
from swav_tf.recipe.classifier import ProbeRecipe
from swav_tf.recipe.files import save_recipe
from swav_tf.runs.checkpoint import CheckpointStore
from swav_tf.training.build import build_swav
from swav_tf.training.classifier import Classifier
from swav_tf.training.classify import compile_classifier
from swav_tf.training.state import named_variables
from tests.swav_models import backbone_without_bn, tiny_recipe

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
RECIPE = {
    "name": "tiny",
    "data": {"kind": "digits", "validation_split": "test", "evaluation": {"resize": 16, "crop": 16}, "threads": 1},
    "crop": {"size": 16, "scale": (0.6, 1.0), "flip_probability": 0.0},
    "train": {"epochs": 2, "batch_size": 128, "precision": "float32"},
    "monitor": {"tensorboard": False, "log_every_steps": 1},
    "checkpoint": {},
}  # fmt: skip


def tiny_classifier_recipe(kind, **changes):
    """Return a recipe that trains on the digits in seconds; `changes` are field=value or section__field=value."""
    recipe = {name: dict(value) if isinstance(value, dict) else value for name, value in RECIPE.items()}
    rates = {"backbone_learning_rate": 0.05, "classifier_learning_rate": 0.2}
    recipe["optimizer"] = {"weight_decay": 1e-6, **({"learning_rate": 0.3} if kind is ProbeRecipe else rates)}
    for key, value in changes.items():
        section, _, field = key.partition("__")
        if field:
            recipe.setdefault(section, {})[field] = value
        else:
            recipe[section] = value
    return kind(**recipe)


def pretraining_run(folder: Path) -> Path:
    """Write a run folder with one checkpoint of random weights that differ from those of the seed."""
    recipe, draw = tiny_recipe(), np.random.default_rng(7)
    arrays = {}
    for name, variable in named_variables(build_swav(recipe)).items():
        value = variable.numpy()
        if "moving_mean" in name:
            value = draw.normal(0.0, 0.05, value.shape)
        arrays[name] = (value * draw.uniform(0.8, 1.2, value.shape)).astype(np.float32)
    CheckpointStore(folder / "checkpoints", kind="pretrain").write(5, arrays, {})
    save_recipe(recipe, folder / "config.yaml")
    return folder


def bare_classifier(recipe, backbone=None, *, class_count=4, steps_per_epoch=3) -> Classifier:
    """Return a compiled classifier, by default on a backbone in which samples do not interact."""
    model = Classifier(
        backbone=backbone or backbone_without_bn(),
        class_count=class_count,
        frozen=recipe.learning_rates[0] is None,
        mean=MEAN,
        std=STD,
        loss_scale=LossScale(enabled=recipe.train.precision == "mixed_float16"),
        accumulation_steps=recipe.train.accumulation_steps,
    )
    compile_classifier(model, recipe, steps_per_epoch)
    return model


def labeled_batches(count, *, size=8, pixels=12, classes=4, seed=0):
    """Return `count` batches (uint8 (size, 1, pixels, pixels, 3), classes (size,))."""
    draw = np.random.default_rng(seed)
    shape = (size, 1, pixels, pixels, 3)
    return [
        (draw.integers(0, 256, shape, dtype=np.uint8), draw.integers(0, classes, size)) for _ in range(count)
    ]
