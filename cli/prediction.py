"""Predict the most probable classes of images and write them to CSV or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cli.progress import load_tensorflow_quietly
from evaluate.backends import is_run_folder
from swav_tf.data.image_source import ImageSource
from swav_tf.data.views import ViewedImage, stack_views, view_images
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import atomic_write, write_csv
from swav_tf.recipe.data import Data
from swav_tf.runs.folder import epoch_in_words

TOP = 5
CSV_COLUMNS = (
    "file",
    *(f"{what}_{place}" for place in range(1, TOP + 1) for what in ("class", "probability")),
    "error",
)


@dataclass(frozen=True)
class Prediction:
    """The predicted classes of one file."""

    file: str  # its path below the folder
    classes: tuple[str, ...] = ()  # up to five, most probable first
    probabilities: tuple[float, ...] = ()  # of these classes, 0 to 1
    error: str | None = None  # why the file is unreadable


@dataclass(frozen=True)
class ClassifierModel:
    """A classifier, run by Keras or ONNX Runtime."""

    probabilities: Callable[[np.ndarray], np.ndarray]  # of uint8 images (n, crop, crop, 3): (n, C), 0 to 1
    class_names: tuple[str, ...]
    data: Data  # settings of its training images: the evaluation view, decoding
    epoch: str  # whose weights these are, in words; empty if unknown


def open_classifier(model: Path, provider: str | None = None, *, best: bool = False) -> ClassifierModel:
    """Open the classifier of a probe or fine-tuning run, or a file exported from one."""
    if not is_run_folder(model) and (usual := model / "model-fp32.onnx").is_file():
        model = usual
    if model.is_file() or model.suffix == ".onnx":
        if best:
            raise UsageError(f"--best is for run folders. Received: {model}. Pass it to `swav-tf export`.")
        return _of_file(model, provider or "cpu")
    if provider is not None:
        raise UsageError(f"--provider is for ONNX files. Received: {model}, which is a run folder.")
    if not is_run_folder(model):
        what = "a folder without config.yaml" if model.is_dir() else "which does not exist"
        raise UsageError(
            "The model must be the folder of a probe or fine-tuning run (with config.yaml), or an ONNX file exported "
            f"from one, or the folder of model-fp32.onnx. Received: {model}, {what}."
        )
    load_tensorflow_quietly()
    from swav_tf.training.classifier import load_classifier

    classifier, recipe, facts = load_classifier(model, best=best)
    return ClassifierModel(
        lambda images: classifier.probabilities(images).numpy(),
        facts.class_names,
        recipe.data,
        epoch_in_words(model, recipe, best=best),
    )


def _of_file(path: Path, provider: str) -> ClassifierModel:
    from scipy.special import softmax

    from evaluate.backends.onnx_backend import OnnxBackend

    runner = OnnxBackend(path, provider=provider, spin=False)
    if "logits" not in runner.outputs:
        raise UsageError(
            f"`predict` needs a file with an output `logits`, exported from a probe or a fine-tuned run. "
            f"Received: {path} with {', '.join(runner.outputs)}."
        )
    return ClassifierModel(
        lambda images: softmax(runner.run(images)["logits"], axis=1),
        runner.metadata.class_names,
        runner.data.model_copy(update={"evaluation": runner.input_view}),
        runner.metadata.epoch,
    )


def predict(
    model: ClassifierModel, source: ImageSource, *, batch_size: int, threads: int
) -> Iterator[Prediction]:
    """Yield predictions in the order of the source; an unreadable file gets its error."""
    waiting: list[ViewedImage] = []
    for image in view_images(source, range(len(source)), model.data.evaluation, threads=threads):
        waiting.append(image)
        if len(waiting) == batch_size:
            yield from _predict_batch(model, waiting)
            waiting = []
    yield from _predict_batch(model, waiting)


def _predict_batch(model: ClassifierModel, images: list[ViewedImage]) -> Iterator[Prediction]:
    readable = [image for image in images if image.view is not None]
    found = iter(model.probabilities(stack_views(readable)) if readable else ())
    for image in images:
        if image.view is None:
            yield Prediction(image.name, error=image.reason)
            continue
        probabilities = next(found)
        order = np.argsort(-probabilities, kind="stable")[:TOP]
        yield Prediction(
            image.name,
            tuple(model.class_names[i] for i in order),
            tuple(float(probabilities[i]) for i in order),
        )


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write a row or an object for each image while they are computed; the file appears at the end."""
    if path.suffix.lower() == ".csv":
        write_csv(path, CSV_COLUMNS, map(_as_row, predictions))
        return
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8") as file:
        separator = "[\n"
        for prediction in predictions:
            file.write(separator + json.dumps(_as_json(prediction), ensure_ascii=False))
            separator = ",\n"
        file.write("\n]\n")


def _as_row(prediction: Prediction) -> list[str]:
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    cells = [cell for name, p in pairs for cell in (name, f"{p:.6g}")]
    return [prediction.file, *cells, *[""] * (2 * TOP - len(cells)), prediction.error or ""]


def _as_json(prediction: Prediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"file": prediction.file, "error": prediction.error}
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    return {"file": prediction.file, "top": [{"class": name, "probability": p} for name, p in pairs]}
