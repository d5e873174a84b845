"""SwAV self-supervised pretraining in TensorFlow/Keras 3.

The public names are imported on first use, so that recipes and crops work without TensorFlow.
"""

import importlib
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

USER_BACKEND = os.environ.get("KERAS_BACKEND")  # `swav-tf doctor` reports it
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
    "SwAV": "swav_tf.method.swav",
    "LARS": "swav_tf.method.optimizers",
    "build_swav": "swav_tf.training.build",
    "load_swav": "swav_tf.training.build",
    "pretrain": "swav_tf.training.pretrain",
    "probe": "swav_tf.training.classify",
    "probe_cached": "swav_tf.training.cached_probe",
    "finetune": "swav_tf.training.classify",
    "load_classifier": "swav_tf.training.classifier_folder",
    "load_recipe_of": "swav_tf.recipe.files",
    "ProbeRecipe": "swav_tf.recipe.classifier",
    "FinetuneRecipe": "swav_tf.recipe.classifier",
    "import_weights": "swav_tf.weights.convert",
    "export_weights": "swav_tf.weights.convert",
}
__all__ = sorted(_HOMES)


# What files of `model.save` name, so that `keras.models.load_model` finds it after `import swav_tf` alone.
_IN_KERAS_FILES = {
    "BatchNorm": "swav_tf.model.batch_norm",
    "Prototypes": "swav_tf.model.head",
    "SwAV": "swav_tf.method.swav",
    "Classifier": "swav_tf.training.classifier",
    "LARS": "swav_tf.method.optimizers",
    "Adam": "swav_tf.method.optimizers",
    "SGD": "swav_tf.method.optimizers",
    "EpochSchedule": "swav_tf.method.optimizers",
    "WarmupCosine": "swav_tf.method.schedule",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'swav_tf' has no attribute {name!r}; it has {', '.join(__all__)}")
    return _load(name, _HOMES[name])


def _load(name: str, home: str) -> Any:
    if home.startswith(("swav_tf.method", "swav_tf.training")):
        importlib.import_module("swav_tf.model.startup").start()
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def _register_in_keras() -> None:
    """Register a stand-in for each class, which imports it when a file is read; the class then takes its place."""
    register = importlib.import_module("keras").saving.register_keras_serializable
    for name, home in _IN_KERAS_FILES.items():

        def from_config(config: dict[str, Any], name: str = name, home: str = home) -> Any:
            return _load(name, home).from_config(config)

        methods = {"from_config": staticmethod(from_config), "get_config": lambda self: {}}
        register("swav_tf", name)(type(name, (), methods))


class _AfterKeras:
    """A finder of modules that registers our classes as soon as Keras is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name) if name == "keras" else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                _register_in_keras()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if sys.modules.get("keras") is not None:
    _register_in_keras()
else:
    sys.meta_path.insert(0, _AfterKeras())
