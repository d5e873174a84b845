"""Labeled images for training and validating a classifier, with common class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swav_tf.data.image_source import ImageSource
from swav_tf.data.sources import open_source
from swav_tf.data.subset import first_of, read_subset
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.names import printable
from swav_tf.recipe.classifier import ClassifierRecipe


@dataclass(frozen=True)
class LabeledData:
    """Training and validation images with common class numbers."""

    train: ImageSource  # may be a subset
    train_labels: npt.NDArray[np.int64]
    validation: ImageSource
    validation_labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]  # of all classes, also of those without images in the subset; printable


def open_labeled(recipe: ClassifierRecipe) -> LabeledData:
    """Open the images that a recipe names and check them before anything is trained.

    Raises:
        DataError: images or labels are missing, the subset's list is wrong, or training and validation
            images have different classes.
    """
    train, validation = open_source(recipe.data), open_source(recipe.data, validation=True)
    highest = int(train.labels().max())
    if recipe.subset is not None:
        train = read_subset(recipe.subset, train)
    train_labels = _labels(train, "training")
    names = train.class_names or numbered(1 + highest)
    if train.class_names and not validation.class_names and not _are_numbers(names):
        raise DataError(_differences(names, ()))
    validation_labels = labels_among(names, validation)
    _report_missing(names, train_labels, "training")
    if len(np.unique(train_labels)) < 2:
        raise DataError(
            f"A classifier needs images of at least two classes. Received: {len(train):,} training images, all of "
            f"{first_of(names[label] for label in train_labels[:1])}. Add images of other classes"
            f"{f' to {recipe.subset}' if recipe.subset else ''}."
        )
    return LabeledData(train, train_labels, validation, validation_labels, printable_names(names))


def printable_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return class names for files; the name of a folder may contain bytes that are not text."""
    return tuple(map(printable, class_names))


def labels_among(class_names: Sequence[str], validation: ImageSource) -> npt.NDArray[np.int64]:
    """Return the labels of validation images in the numbering of a classifier's outputs; see `renumbered`.

    Classes without validation images are reported.
    """
    own = _labels(validation, "validation")
    labels = renumbered(own, validation.class_names, class_names)
    if (labels < 0).any():
        raise DataError(_differences(class_names, validation.class_names or list(map(str, np.unique(own)))))
    _report_missing(class_names, labels, "validation")
    return labels


def renumbered(
    labels: npt.NDArray[np.int64], own: Sequence[str], names: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Return labels of the classes `own` as labels of the classes `names`; -1 for classes that are missing there.

    Classes are matched by name, and names that are numbers by number: `07` is `7`. Labels without names are numbers,
    which match names that are all numbers; other names leave only the position, which is reported.
    """
    if not (own and names) and not _are_numbers(own or names):
        log.warning(
            "Only one of the two image sets has class names. Labels are matched by position: label 0 is taken as the "
            "first class name."
        )
        return np.where(labels < len(names or own), labels, -1)
    count = 1 + int(labels.max(initial=-1))
    own = printable_names(own or numbered(count))
    names = printable_names(names or numbered(1 + max(map(int, own), default=0)))
    places = {name: place for place, name in enumerate(map(_key, names))}
    places |= {name: place for place, name in enumerate(names)}  # `07` and `7` may both be classes
    # The last place is that of label -1.
    table = np.array([places.get(name, places.get(_key(name), -1)) for name in own] + [-1], np.int64)
    if int(labels.max(initial=-1)) >= len(own):
        raise DataError(
            f"Labels must be less than the number of classes, {len(own):,}. Received: {labels.max():,}."
        )
    return table[labels]


def _key(name: str) -> object:
    return int(name) if name.isdecimal() else name


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names)


def _report_missing(names: Sequence[str], labels: npt.NDArray[np.int64], what: str) -> None:
    missing = [names[place] for place in np.setdiff1d(np.arange(len(names)), labels)]
    if missing:
        log.warning(
            f"{len(missing):,} of {len(names):,} classes have no {what} image: {first_of(printable_names(missing))}."
        )


def numbered(count: int) -> tuple[str, ...]:
    """Return the names of classes that have none: their numbers."""
    return tuple(map(str, range(count)))


def _labels(source: ImageSource, what: str) -> npt.NDArray[np.int64]:
    labels = source.labels()
    unlabeled = int((labels < 0).sum())
    if unlabeled:
        raise DataError(
            f"A classifier needs labels. Received: {what} images, {unlabeled:,} of {len(labels):,} without one. "
            "Put them into one folder per class, or provide a list of labels (data.labels)."
        )
    return labels


def _differences(train: Sequence[str], validation: Sequence[str]) -> str:
    known = set(map(_key, train))
    extra = [name for name in validation if _key(name) not in known]
    found = f"{len(extra):,} only among the validation images: {first_of(extra)}" if extra else "no names"
    return (
        "Every class of the validation images must exist in the training images (matched by name or number). "
        f"Received: {len(train):,} and {len(validation):,} classes; {found}. "
        f"The training images have: {first_of(train)}."
    )
