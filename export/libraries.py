"""Weights as other libraries load them: Keras alone, TensorFlow Serving, timm and KerasHub."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from export.staging import filled_folder
from swav_tf.model.architectures import ARCHITECTURES
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.recipe.files import load_any_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.model_facts import NAME, ModelFacts
from swav_tf.weights.convert import export_weights, import_weights

Library = Literal["keras", "savedmodel", "timm"]
LIBRARIES: Final[tuple[Library, ...]] = ("keras", "savedmodel", "timm")
TIMM: Final = tuple(name for name, network in ARCHITECTURES.items() if network.stem == "imagenet")


def export_for(library: Library, source: Path, to: Path, *, best: bool = False) -> None:
    """Write a network, with the logits of a classifier, for another library; it loads there without this package.

    Args:
        library: `keras`: a .keras file of Keras' own layers, from uint8 images (n, height, width, 3) to features;
            `savedmodel`: the same as a folder for TensorFlow Serving; `timm`: a folder with config.json and
            model.safetensors, which KerasHub reads too.
        source: a run folder, or any file of weights that can be imported.
        to: a new file that ends in .keras, or a new folder.
        best: use the best validated epoch of a probe or fine-tuning run, not its newest checkpoint.

    Raises:
        UsageError: `to` exists or has another ending, or the library has no such network.
        WeightsError, CheckpointError: the source is damaged or of an unknown format.
        ExportError: the disk is full.
    """
    if to.exists() and (library == "keras" or not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"--output must be new: nothing is overwritten. Received: {to}, which exists.")
    if (to.suffix == ".keras") != (library == "keras"):
        raise UsageError(
            f"--output must end in .keras for --to keras, and be a folder for {' and '.join(LIBRARIES[1:])}. "
            f"Received: {to} for {library}."
        )
    with _run_of(source) as run:
        if library == "timm":
            _write_timm(run, to, best=best)
            return
        from export.graph import keras_network, load_trained

        network = keras_network(load_trained(run, best=best))
        if library == "keras":
            with atomic_write(to) as partial, tempfile.TemporaryDirectory() as folder:
                network.save(Path(folder) / "x.keras")  # Keras insists on the ending
                shutil.copyfile(Path(folder) / "x.keras", partial)
        else:
            with filled_folder(to) as folder:
                network.export(folder, format="tf_saved_model", verbose=False)


@contextmanager
def _run_of(source: Path) -> Iterator[Path]:
    """Yield the run folder itself, or one into which a file is imported."""
    if (source / "config.yaml").is_file():
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        yield import_weights(source, Path(folder) / "run").path


def _write_timm(run: Path, to: Path, *, best: bool) -> None:
    recipe = load_any_recipe(run / "config.yaml")
    facts = recipe if isinstance(recipe, Recipe) else ModelFacts.read(run / NAME)
    images = facts.augment if isinstance(facts, Recipe) else facts
    backbone, view = facts.model.backbone, recipe.data.evaluation
    if backbone.name not in TIMM or backbone.width != 1:
        raise UsageError(
            f"timm and KerasHub have {', '.join(TIMM)}, of width 1. Received: {backbone.name} of width "
            f"{backbone.width}. Use --to keras."
        )
    classes = () if isinstance(facts, Recipe) else facts.class_names
    config = {
        "architecture": backbone.name,
        "num_classes": len(classes),
        "pretrained_cfg": {
            "input_size": [3, view.crop, view.crop],
            "crop_pct": view.crop / view.resize,
            "interpolation": "bilinear",
            "mean": images.mean,
            "std": images.std,
            "first_conv": "conv1",
            "classifier": "fc",
        },
        **({"label_names": classes} if classes else {}),
    }
    with filled_folder(to) as folder:
        export_weights(run, folder / "model.safetensors", names="torchvision", best=best)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
