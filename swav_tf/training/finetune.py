"""Fine-tuning: backbone and classifier are trained together, each with a learning rate of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras

from swav_tf.classifier_recipe import FinetuneRecipe
from swav_tf.training.classifier_folder import start_from
from swav_tf.training.classify import ClassifierResult, train_classifier
from swav_tf.training.rendezvous import ClusterAddress


def finetune(
    recipe: FinetuneRecipe,
    *,
    model: Path | str,
    run_dir: Path | str,
    from_scratch: bool = False,
    cluster: ClusterAddress | None = None,
    fresh: bool = False,
    quiet: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> ClassifierResult:
    """Trains a pretraining run's backbone, and a classifier on it, on labelled images (recipe, section 7).

    Batch normalisation is in training mode, its statistics over all replicas.

    Args:
        recipe: all settings.
        model: run folder of the pretraining; with `from_scratch` a recipe will do.
        run_dir: folder of this run; with a checkpoint in it, the run goes on from there.
        from_scratch: the backbone's weights are drawn at random, for comparison.
        cluster: this node's place among several; TF_CONFIG and SLURM are understood without.
        fresh: start anew; what is in the folder is moved into `previous-N/` there.
        quiet: print nothing but warnings.
        callbacks: more Keras callbacks.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
        SwavError: the run diverged, was stopped, or ran out of memory; checkpoints are kept.
    """
    return train_classifier(
        recipe,
        start_from(model, from_scratch=from_scratch),
        run_dir=run_dir,
        cluster=cluster,
        fresh=fresh,
        quiet=quiet,
        callbacks=callbacks,
    )
