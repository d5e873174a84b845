"""A job in a process of its own. The server of runs.py imports this module once, and forks a process for each job."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

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
from tests import tiny_network  # noqa: F401, recipes name it


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


def run(arguments, environment, errors):
    """Train by a recipe of any kind: RECIPE RUN_DIR [NODES RANK MASTER]; `errors` is the file for stderr."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "SWAV_TF_TEST_NETWORK" in os.environ:  # a network namespace
        namespace = os.open(f"/run/netns/{os.environ['SWAV_TF_TEST_NETWORK']}", os.O_RDONLY)
        assert ctypes.CDLL(None).setns(namespace, 0x40000000) == 0  # CLONE_NEWNET
    if "SWAV_TF_TEST_TERMINAL" in os.environ:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, which ignores it
        os.setsid()
        # The first one that a session opens is its own.
        terminal = os.open(os.environ["SWAV_TF_TEST_TERMINAL"], os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(terminal, stream)
    else:
        os.dup2(os.open(errors, os.O_WRONLY), 2)
    train(*arguments)


def train(file, run_dir, *place):
    if "SWAV_TF_TEST_STUCK_OPENING" in os.environ:
        open_slowly(os.environ["SWAV_TF_TEST_STUCK_OPENING"])
    if "SWAV_TF_TEST_POISONED_STEP" in os.environ:
        poison_gradients(int(os.environ["SWAV_TF_TEST_POISONED_STEP"]))
    if "SWAV_TF_TEST_STEP_SECONDS" in os.environ:
        train_slowly(float(os.environ["SWAV_TF_TEST_STEP_SECONDS"]))
    if "SWAV_TF_TEST_START_SECONDS" in os.environ:
        cluster.START_SECONDS = float(os.environ["SWAV_TF_TEST_START_SECONDS"])
    recipe = load_any_recipe(file)
    address = ClusterAddress(int(place[0]), int(place[1]), place[2]) if place else None
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
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
