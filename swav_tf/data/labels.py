"""Labelled images to train a classifier on and to validate it on, held against each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swav_tf.data.sources import ImageSource, open_source
from swav_tf.data.subset import read_subset
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable
from swav_tf.recipe.classifier import ClassifierRecipe

_SHOWN = 20


@dataclass(frozen=True)
class LabelledData:
    """Training and validation images with one numbering of classes.

    Attributes:
        train, validation: the images; `train` may be a subset.
        train_labels, validation_labels: their classes, from 0.
        class_names: of all classes, also of those that a subset leaves out; printable.
    """

    train: ImageSource
    train_labels: npt.NDArray[np.int64]
    validation: ImageSource
    validation_labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]


def open_labelled(recipe: ClassifierRecipe) -> LabelledData:
    """The images that a recipe names, checked whole before anything is trained.

    Raises:
        DataError: images or labels are missing, the list of the subset is wrong, or training and
            validation images have different classes.
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
    """As they stand in files: a folder's name may hold bytes that are no text."""
    return tuple(map(printable, class_names))


def labels_among(class_names: tuple[str, ...], validation: ImageSource) -> npt.NDArray[np.int64]:
    """The classes of validation images, known to be those that a classifier was trained on.

    Args:
        class_names: of the classifier's outputs.
        validation: the images; where they do not name their classes, their numbers count.

    Raises:
        DataError: labels are missing, or of other classes.
    """
    labels = _labels(validation, "validation")
    if printable_names(validation.class_names) not in ((), printable_names(class_names)):
        raise DataError(_differences(class_names, validation.class_names))
    unknown = sorted(set(labels.tolist()) - set(range(len(class_names))))
    if unknown:
        raise DataError(
            f"Validation images must be of the classes of the training images, 0 to {len(class_names) - 1}. "
            f"Received: {', '.join(map(str, unknown[:_SHOWN]))}."
        )
    return labels


def numbered(count: int) -> tuple[str, ...]:
    """Names of classes that have none."""
    return tuple(map(str, range(count)))


def _labels(source: ImageSource, what: str) -> npt.NDArray[np.int64]:
    labels = np.array([source.label(index) for index in range(len(source))], np.int64)
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        raise DataError(
            f"A classifier needs labels. Received: {what} images, {unlabelled:,} of {len(labels):,} without one. "
            "Put them into one folder a class (data.kind: class_folders)."
        )
    return labels


def _differences(train: tuple[str, ...], validation: tuple[str, ...]) -> str:
    only = [
        (what, sorted(set(one) - set(other)))
        for what, one, other in (("training", train, validation), ("validation", validation, train))
    ]
    told = [
        f"{len(names):,} only among the {what} images: {', '.join(names[:_SHOWN])}"
        f"{' ...' if len(names) > _SHOWN else ''}"
        for what, names in only
        if names
    ]
    return (
        f"Training and validation images must have the same classes. Received: {len(train):,} and {len(validation):,}; "
        + ("; ".join(told) or "the same names in another order")
        + "."
    )
