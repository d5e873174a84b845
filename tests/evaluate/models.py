"""A model without TensorFlow, and folders of images for it."""

import numpy as np
from PIL import Image

from evaluate.backends.backend import Backend, ModelIdentity
from evaluate.feature_file import FeatureFile, Rows
from evaluate.images import open_images
from swav_tf.recipe.pretraining import Data, EvaluationView

SIDE, FEATURES, PROTOTYPES = 6, 5, 7


class NumpyRunner(Backend):
    """Random linear features of the pixels; `weights` tells two of them apart."""

    outputs = ("features", "projections", "scores")
    input_view = EvaluationView(resize=8, crop=8).model_copy(update={"crop": SIDE})
    feature_dim = FEATURES

    def __init__(self, weights: str = "a" * 64) -> None:
        self.facts = ModelIdentity(
            path="model", runner="numpy", weights_sha256=weights, step=3, recipe="tiny"
        )
        self.data = Data(kind="class_folders")
        draw = np.random.default_rng(5)
        self.kernel = draw.normal(size=(SIDE * SIDE * 3, FEATURES)).astype(np.float32)
        self.prototypes = draw.normal(size=(FEATURES, PROTOTYPES)).astype(np.float32)
        self.batches: list[int] = []

    def _run(self, images):
        assert images.dtype == np.uint8
        assert images.shape[1:] == (SIDE, SIDE, 3)
        self.batches.append(len(images))
        features = images.reshape(len(images), -1).astype(np.float32) @ self.kernel / 1000
        projections = features / np.linalg.norm(features, axis=1, keepdims=True)
        return {"features": features, "projections": projections, "scores": projections @ self.prototypes}


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
    """A feature file that is on no disk."""
    n = len(features)
    rows = Rows(features, np.asarray(labels, np.int64), np.arange(n), [str(i) for i in range(n)])
    return FeatureFile("x.npz", rows, facts)
