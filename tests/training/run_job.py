"""Train by a recipe of any kind in a process: python run_job.py RECIPE RUN_DIR [NODES RANK MASTER]."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tensorflow as tf

from swav_tf.method.swav import SwAV
from swav_tf.plumbing.errors import SwavError
from swav_tf.recipe.files import load_any_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.training import cluster
from swav_tf.training import pretrain as job
from swav_tf.training.classify import train_classifier
from swav_tf.training.rendezvous import ClusterAddress
from swav_tf.training.state import named_variables


def poison_gradients(step):
    """Make this process's own gradients NaN at one step."""
    original = SwAV._gradients

    def gradients(self, tape, loss):
        factor = tf.where(self.optimizer.iterations.value == step, float("nan"), 1.0)
        return [gradient * factor for gradient in original(self, tape, loss)]

    SwAV._gradients = gradients


def train_slowly(seconds):
    """Wait before each step, so that a signal comes before the end."""
    original = SwAV._next

    def after_a_while(self, iterator):
        time.sleep(seconds)
        return original(self, iterator)

    SwAV._next = after_a_while


def open_slowly(marker):
    """Create a file, then never finish opening the images, as on a slow file system."""

    def never(data, **options):
        Path(marker).touch()
        time.sleep(600)

    job.open_source = never


if __name__ == "__main__":
    if "SWAV_TF_TEST_STUCK_OPENING" in os.environ:
        open_slowly(os.environ["SWAV_TF_TEST_STUCK_OPENING"])
    if "SWAV_TF_TEST_POISONED_STEP" in os.environ:
        poison_gradients(int(os.environ["SWAV_TF_TEST_POISONED_STEP"]))
    if "SWAV_TF_TEST_STEP_SECONDS" in os.environ:
        train_slowly(float(os.environ["SWAV_TF_TEST_STEP_SECONDS"]))
    if "SWAV_TF_TEST_START_SECONDS" in os.environ:
        cluster.START_SECONDS = float(os.environ["SWAV_TF_TEST_START_SECONDS"])
    recipe, run_dir, *cluster = sys.argv[1:]
    address = ClusterAddress(int(cluster[0]), int(cluster[1]), cluster[2]) if cluster else None
    recipe = load_any_recipe(recipe)
    options = {"run_dir": run_dir, "cluster": address, "quiet": not sys.stderr.isatty()}
    try:
        if isinstance(recipe, Recipe):
            result = job.pretrain(recipe, **options)
        else:
            result = train_classifier(recipe, model=os.environ["SWAV_TF_TEST_MODEL"], **options)
        if "SWAV_TF_TEST_WEIGHTS" in os.environ:
            weights = {name: v.numpy() for name, v in named_variables(result.model).items()}
            np.savez(os.environ["SWAV_TF_TEST_WEIGHTS"], **weights)
    except SwavError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
