"""Recipes of probes and fine-tuning whose settings cannot work together, or do nothing."""

from __future__ import annotations

from collections.abc import Iterator

from swav_tf.plumbing.errors import RecipeError
from swav_tf.recipe.advice import (
    Advice,
    impossible_batch,
    impossible_devices,
    impossible_scale,
    impossible_view,
    slow_precision,
)
from swav_tf.recipe.classifier import ClassifierRecipe


def check_classifier_recipe(
    recipe: ClassifierRecipe, *, replicas: int | None = None, images: int | None = None, on_cpu: bool = False
) -> list[Advice]:
    """Refuse settings that cannot work together; return advice on those that can but should not.

    Args:
        recipe: what to check.
        replicas: devices over all workers, where known.
        images: training images, where known.
        on_cpu: the run is known to have no GPU.

    Raises:
        RecipeError: lists every combination that cannot work, with the reason.
    """
    replicas = replicas or max(1, recipe.train.logical_cpus)
    errors = [
        *impossible_scale("crop.scale", recipe.crop.scale, "The published probe has [0.08, 1.0]"),
        *impossible_scale(
            "crop.aspect_ratio", recipe.crop.aspect_ratio, "The usual one is [0.75, 1.333]", most=None
        ),
        *impossible_view(recipe.data),
        *_impossible_data(recipe),
        *_impossible_decay(recipe),
        *impossible_batch(recipe.train, replicas, images),
        *impossible_devices(recipe.train),
    ]
    if errors:
        raise RecipeError(
            "\n".join([f"recipe '{recipe.name}' cannot work:", *(f"  {error}" for error in errors)])
        )
    return list(slow_precision(recipe.train, on_cpu))


def _impossible_data(recipe: ClassifierRecipe) -> Iterator[Advice]:
    if recipe.data.kind == "images":
        yield Advice(
            "data.kind",
            "a classifier needs labels and data.kind is images, a folder without labels",
            "Set it to class_folders, and put the images into one folder a class",
        )
    of_splits = recipe.data.kind in ("digits", "tfds")
    unread = "validation_path" if of_splits else "validation_split"
    if getattr(recipe.data, unread) is not None:
        yield Advice(
            f"data.{unread}",
            f"plays no part where data.kind is {recipe.data.kind}; got {getattr(recipe.data, unread)!r}",
            f"Set data.{'validation_split' if of_splits else 'validation_path'} instead",
        )


def _impossible_decay(recipe: ClassifierRecipe) -> Iterator[Advice]:
    sgd, epochs = recipe.sgd, recipe.train.epochs
    if sgd.decay == "cosine" and sgd.decay_epochs:
        yield Advice(
            "optimizer.decay_epochs",
            f"has no effect with optimizer.decay=cosine; got {list(sgd.decay_epochs)}",
            "Leave it out, or set optimizer.decay=steps",
        )
    if sgd.decay == "steps" and not sgd.decay_epochs:
        yield Advice(
            "optimizer.decay_epochs",
            "must name the epochs where the rates go down when optimizer.decay is steps",
            "The published fine-tuning has [12, 16] of 20 epochs",
        )
    if sgd.decay_epochs and not (
        sorted(set(sgd.decay_epochs)) == list(sgd.decay_epochs)
        and 0 < sgd.decay_epochs[0] <= sgd.decay_epochs[-1] < epochs
    ):
        yield Advice(
            "optimizer.decay_epochs",
            f"must rise and lie between 1 and the last epoch, {epochs - 1}; got {list(sgd.decay_epochs)}",
            "Change it or train.epochs",
        )
