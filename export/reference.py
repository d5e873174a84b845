"""Draw images and keep them with Keras' outputs in reference.npz, to compare exported files with."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evaluate.backends.onnx_metadata import dataset_name
from evaluate.images import ImageSet, open_images
from export.settings import ExportSettings
from swav_tf.data.bad_images import BadImages
from swav_tf.data.labels import numbered
from swav_tf.data.views import ViewedImage, view_images
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.log import log
from swav_tf.recipe.data import Data, EvaluationView

if TYPE_CHECKING:
    from export.graph import TrainedModel

REFERENCE: Final = "reference.npz"
RANDOM_IMAGES: Final = 16  # of random pixels, compared in addition to the real ones


@dataclass(frozen=True)
class Views:
    """Images as the model sees them."""

    images: np.ndarray  # uint8 (n, crop, crop, 3)
    labels: np.ndarray  # (n,), -1 for none
    facts: dict[str, Any] = field(default_factory=dict)  # of the draw
    class_names: tuple[str, ...] = ()  # that the labels number


def draw(data: Data, settings: ExportSettings, view: EvaluationView) -> tuple[Views, Views]:
    """Draw images to compare and to calibrate on; without any, fp32 and fp16 are compared on random pixels only.

    They are those of the settings, by default the training images `data`.
    """
    given = (settings.data, settings.kind, settings.split) != (None, None, None)
    try:
        images = open_images(settings.data, like=data, kind=settings.kind, split=settings.split)
    except (UsageError, DataError) as error:
        if given or "int8" in settings.precisions:
            raise type(error)(f"--calibration: {error}") from error
        log.info(
            "Only random pixels are compared, no real images: %s Provide some with --calibration.", error
        )
        return no_images(view), no_images(view)
    counts = settings.reference_images, settings.calibration_images if "int8" in settings.precisions else 0
    return draw_images(images, counts, view, seed=settings.seed, max_bad_share=data.max_bad_share)


def draw_images(
    images: ImageSet, counts: tuple[int, int], view: EvaluationView, *, seed: int, max_bad_share: float
) -> tuple[Views, Views]:
    """Draw twice, with no image in common; skip unreadable images.

    The counts are those of the first and of the second draw, which may be 0; with too few images, both draws get the
    same share of their count. At most `max_bad_share` (0 to 1) of the images may be unreadable.
    """
    order = np.random.default_rng(seed).permutation(len(images.source))
    total = sum(counts)
    unreadable = BadImages(images=min(total, len(order)), max_share=max_bad_share)
    seen: list[ViewedImage] = []
    for image in view_images(images.source, order, view, ahead=64):
        if image.view is None:
            unreadable.bad(image.name, image.reason or "")
            continue
        seen.append(image)
        if len(seen) == total:
            break
    first = min(counts[0], len(seen) * counts[0] // total)
    draws = seen[:first], seen[first : first + counts[1]]
    if any(wanted and len(draw) < 2 for wanted, draw in zip(counts, draws, strict=True)):
        where = images.settings.path or images.settings.kind
        others = ", and 2 others to calibrate int8" if counts[1] else ""
        raise DataError(
            f"There must be at least 2 readable images to compare{others}. Received: {len(seen)} in {where}. Pass "
            "more images: --calibration DATA, in `verify` --images DATA."
        )
    first_draw, second_draw = (_drawn(draw, images, view, seed) for draw in draws)
    return first_draw, second_draw


def no_images(view: EvaluationView) -> Views:
    """Return a draw without images."""
    return Views(np.empty((0, view.crop, view.crop, 3), np.uint8), np.empty(0, np.int64))


def _drawn(draw: Sequence[ViewedImage], images: ImageSet, view: EvaluationView, seed: int) -> Views:
    if not draw:
        return no_images(view)
    source = images.facts() | {"path": dataset_name(images.settings)}  # paths on this machine stay private
    source.pop("labels", None)
    names = hashlib.sha256("".join(f"{image.name}\n" for image in draw).encode())
    return Views(
        np.array([image.view for image in draw], np.uint8),
        np.array([image.label for image in draw], np.int64),
        facts={
            "images": len(draw),
            "names_sha256": names.hexdigest(),
            "seed": seed,
            "source": source,
        },
        class_names=tuple(images.source.class_names),
    )


@dataclass(frozen=True)
class Reference:
    """N images, the real ones first, and Keras' outputs."""

    images: np.ndarray  # uint8 (N, crop, crop, 3), as the model sees them
    labels: np.ndarray  # (N,), -1 for none
    real: np.ndarray  # (N,), False for random pixels
    outputs: dict[str, np.ndarray]  # float32 (N, ...)
    weights_sha256: str  # of the model
    view: EvaluationView
    facts: dict[str, Any]  # source, step and recipe, for people


def reference_of(
    trained: TrainedModel, names: tuple[str, ...], view: EvaluationView, compared: Views, seed: int
) -> Reference:
    """Return the drawn images and some of random pixels, with the outputs of Keras."""
    pixels = (RANDOM_IMAGES, view.crop, view.crop, 3)
    noise = np.random.default_rng(seed).integers(0, 256, pixels, dtype=np.uint8)
    log.info("Keras: %d images and %d of random pixels", len(compared.images), len(noise))
    images = np.concatenate([compared.images, noise])
    outputs = trained.outputs(images)
    return Reference(
        images=images,
        labels=np.concatenate([compared.labels, np.full(len(noise), -1, np.int64)]),
        real=np.arange(len(images)) < len(compared.images),
        outputs={name: outputs[name] for name in names},
        weights_sha256=trained.weights_sha256,
        view=view,
        facts={
            "step": trained.step,
            "epoch": trained.epoch,
            "recipe": trained.recipe.name,
            "real": compared.facts or None,
            "labels_of_logits": [*(compared.class_names or numbered(len(trained.class_names)))]
            == [*trained.class_names],
        },
    )


def write_reference(path: Path, reference: Reference) -> None:
    """Write a .npz file in a staging folder."""
    facts = {
        **reference.facts,
        "weights_sha256": reference.weights_sha256,
        "view": reference.view.model_dump(),
        "outputs": list(reference.outputs),
    }
    np.savez(
        path,
        images=reference.images,
        labels=reference.labels,
        real=reference.real,
        facts=np.array(json.dumps(facts)),
        **reference.outputs,  # type: ignore[arg-type]  # `allow_pickle` is not the name of an output
    )


def read_reference(path: Path) -> Reference:
    """Read a reference."""
    if not path.is_file():
        raise UsageError(f"Reference not found: {path}. `swav-tf export` writes it next to its files.")
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels, real = file["images"], file["labels"], file["real"]
            facts = json.loads(str(file["facts"]))
            outputs = {name: file[name] for name in facts.pop("outputs")}
            view = EvaluationView(**facts.pop("view"))
            reference = Reference(images, labels, real, outputs, facts.pop("weights_sha256"), view, facts)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} must be a reference written by `swav-tf export`; it cannot be read: {error}"
        ) from error
    lengths = {len(array) for array in (labels, real, *outputs.values())}
    if not len(images) or lengths != {len(images)} or "features" not in outputs:
        raise DataError(
            f"{path} must contain images, and features for each. Received: {len(images)} images, "
            f"outputs {', '.join(outputs) or 'none'}."
        )
    return reference
