"""A model without TensorFlow, and folders of images for it."""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from evaluate.backends.backend import Backend, ModelIdentity
from evaluate.feature_file import FeatureFile
from evaluate.images import open_images
from swav_tf.data.views import stack_views, view_images
from swav_tf.recipe.data import Data, EvaluationView

NUMBERS = itertools.count()
SIDE, FEATURES, PROTOTYPES = 6, 5, 7


class NumpyBackend(Backend):
    """Random linear features of the pixels.

    Args:
        weights: identifies the model.
        stop_after: batches after which `stop` is called.
        stop: ends the process, or raises.
    """

    outputs = ("features", "projections", "scores")
    input_view = EvaluationView(resize=8, crop=8).model_copy(update={"crop": SIDE})
    feature_dim = FEATURES
    data = Data(kind="class_folders")

    def __init__(self, weights="a" * 64, *, path="model", stop_after=None, stop=None):
        self.facts = ModelIdentity(path=path, runner="numpy", weights_sha256=weights, step=3, recipe="tiny")
        draw = np.random.default_rng(5)
        self.kernel = draw.normal(size=(SIDE * SIDE * 3, FEATURES)).astype(np.float32)
        self.prototypes = draw.normal(size=(FEATURES, PROTOTYPES)).astype(np.float32)
        self.stop_after, self.stop = stop_after, stop
        self.batches: list[int] = []

    def _run(self, images):
        if len(self.batches) == self.stop_after:
            self.stop()
        self.batches.append(len(images))
        features = images.reshape(len(images), -1).astype(np.float32) @ self.kernel / 1000
        projections = features / np.linalg.norm(features, axis=1, keepdims=True)
        return {"features": features, "projections": projections, "scores": projections @ self.prototypes}


def outputs_of(source, indices):
    """Outputs of the model for images of a source, all at once."""
    return NumpyBackend().run(stack_views(list(view_images(source, indices, NumpyBackend.input_view))))


def make_class_folders(root, classes=("cat", 'dög, "big"'), each=10):
    """Images of random size and content, the same at every call."""
    draw = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            height, width = draw.integers(8, 30, 2)
            pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    return root


def class_folders(root):
    return open_images(str(root), like=Data(kind="class_folders"))


def feature_file(features, labels, **facts):
    """A feature file in memory."""
    n = len(features)
    names = [str(i) for i in range(n)]
    return FeatureFile(
        Path(f"{next(NUMBERS)}.npz"), features, np.asarray(labels, np.int64), np.arange(n), names, facts
    )


def assert_same_features(one, other):
    """Two feature files, or folders of parts, have the same rows, bit for bit."""
    assert np.array_equal(np.asarray(one.features), np.asarray(other.features))
    for name in ("labels", "index", "names"):
        assert list(getattr(one, name)) == list(getattr(other, name)), name
