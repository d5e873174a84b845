"""Fine-tuning: backbone and classifier are trained together, each with a learning rate of its own."""

from __future__ import annotations

from typing import Unpack

from swav_tf.recipe.classifier import FinetuneRecipe
from swav_tf.training.classify import ClassifierResult, RunOptions, train_classifier


def finetune(recipe: FinetuneRecipe, **options: Unpack[RunOptions]) -> ClassifierResult:
    """Trains a pretraining run's backbone and a classifier on labelled images (docs/algorithm.md, "Fine-tuning").

    Batch normalisation is in training mode, its statistics over all replicas.

    Args:
        recipe: all settings.
        **options: `model`, `run_dir` and the others of `RunOptions`.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
        SwavError: the run diverged, was stopped, or ran out of memory; checkpoints are kept.
    """
    return train_classifier(recipe, **options)
