"""Labelled images to train and validate a classifier on, with one numbering of classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swav_tf.data.sources import ImageSource, open_source
from swav_tf.data.subset import first_of, read_subset
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable
from swav_tf.recipe.classifier import ClassifierRecipe


@dataclass(frozen=True)
class LabelledData:
    """Training and validation images with one numbering of classes."""

    train: ImageSource  # may be a subset
    train_labels: npt.NDArray[np.int64]
    validation: ImageSource
    validation_labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]  # of all classes, also of those without images in the subset; printable


def open_labelled(recipe: ClassifierRecipe) -> LabelledData:
    """Open the images that a recipe names and check them before anything is trained.

    Raises:
        DataError: images or labels are missing, the subset's list is wrong, or training and validation
            images have different classes.
    """
    train, validation = open_source(recipe.data), open_source(recipe.data, validation=True)
    train_labels = _labels(train, "training")
    names = train.class_names or numbered(1 + int(train_labels.max()))
    if train.class_names != validation.class_names:
        raise DataError(_differences(train.class_names, validation.class_names))
    validation_labels = labels_among(names, validation)
    if recipe.subset is not None:
        train = read_subset(recipe.subset, train)
        train_labels = _labels(train, "training")
    return LabelledData(train, train_labels, validation, validation_labels, printable_names(names))


def printable_names(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return class names as they are written to files: a folder's name may contain bytes that are not text."""
    return tuple(map(printable, class_names))


def labels_among(class_names: tuple[str, ...], validation: ImageSource) -> npt.NDArray[np.int64]:
    """Return the labels of validation images, checked against the classes of a classifier's outputs.

    Only the numbers are checked if the images do not name their classes.

    Raises:
        DataError: labels are missing, or of other classes.
    """
    labels = _labels(validation, "validation")
    if printable_names(validation.class_names) not in ((), printable_names(class_names)):
        raise DataError(_differences(class_names, validation.class_names))
    unknown = sorted(set(labels.tolist()) - set(range(len(class_names))))
    if unknown:
        raise DataError(
            f"Validation images must have the classes of the training images, 0 to {len(class_names) - 1}. "
            f"Received: {first_of(map(str, unknown))}."
        )
    return labels


def numbered(count: int) -> tuple[str, ...]:
    """Return the names of classes that have none: their numbers."""
    return tuple(map(str, range(count)))


def _labels(source: ImageSource, what: str) -> npt.NDArray[np.int64]:
    labels = np.array([source.label(index) for index in range(len(source))], np.int64)
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        raise DataError(
            f"A classifier needs labels. Received: {what} images, {unlabelled:,} of {len(labels):,} without one. "
            "Put them into one folder for each class (data.kind: class_folders)."
        )
    return labels


def _differences(train: tuple[str, ...], validation: tuple[str, ...]) -> str:
    only = {"training": set(train) - set(validation), "validation": set(validation) - set(train)}
    lines = [
        f"{len(names):,} only among the {what} images: {first_of(sorted(names))}"
        for what, names in only.items()
        if names
    ]
    return (
        "Training and validation images must have the same classes. "
        f"Received: {len(train):,} and {len(validation):,}; {'; '.join(lines) or 'the same names in another order'}."
    )
