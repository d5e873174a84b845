"""SwAV self-supervised pretraining in TensorFlow/Keras 3.

The public names are imported on first use, so that recipes and crops work without TensorFlow.
"""

import importlib
import os
from typing import Any

# The shell or keras.json may name another backend.
os.environ["KERAS_BACKEND"] = "tensorflow"

_HOMES = {
    "load_recipe": "swav_tf.recipe.files",
    "Recipe": "swav_tf.recipe.pretraining",
    "open_source": "swav_tf.data.sources",
    "read_image": "swav_tf.data.sources",
    "MultiCrop": "swav_tf.data.multicrop",
    "sinkhorn": "swav_tf.method.sinkhorn",
    "swapped_prediction_loss": "swav_tf.method.loss",
    # With all classes that files of `model.save` name: importing one of these two makes them known to Keras.
    "SwAV": "swav_tf.training.build",
    "Classifier": "swav_tf.training.classify",
    "LARS": "swav_tf.method.optimizers",
    "build_swav": "swav_tf.training.build",
    "load_swav": "swav_tf.training.build",
    "pretrain": "swav_tf.training.pretrain",
    "probe": "swav_tf.training.classify",
    "probe_cached": "swav_tf.training.cached_probe",
    "finetune": "swav_tf.training.classify",
    "load_classifier": "swav_tf.training.classifier",
    "load_recipe_of": "swav_tf.recipe.files",
    "ProbeRecipe": "swav_tf.recipe.classifier",
    "FinetuneRecipe": "swav_tf.recipe.classifier",
    "import_weights": "swav_tf.weights.convert",
    "export_weights": "swav_tf.weights.convert",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'swav_tf' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = _HOMES[name]
    if home.startswith(("swav_tf.method", "swav_tf.training")):
        importlib.import_module("swav_tf.model.startup").start()
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
