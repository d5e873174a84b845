"""Images and Keras' features of them, to compare exported files with."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from evaluate.backends.onnx_metadata import dataset_name
from evaluate.images import ImageSet
from swav_tf.data.views import UnreadableImages, view_images
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.pretraining import EvaluationView

REFERENCE: Final = "reference.npz"
RANDOM_IMAGES: Final = 16  # of random pixels, in addition to the real ones


@dataclass(frozen=True)
class Drawn:
    """Images drawn at random, as the model sees them.

    Attributes:
        views: uint8 (n, crop, crop, 3).
        labels: (n,) classes, -1 for none.
        facts: number, seed, SHA-256 of their names (one a line) and source; empty without images.
    """

    views: np.ndarray
    labels: np.ndarray
    facts: dict[str, Any]


def no_images(view: EvaluationView) -> Drawn:
    """Return a draw without images."""
    return Drawn(np.empty((0, view.crop, view.crop, 3), np.uint8), np.empty(0, np.int64), {})


def draw_images(
    images: ImageSet, counts: tuple[int, int], view: EvaluationView, *, seed: int, max_bad_share: float
) -> tuple[Drawn, Drawn]:
    """Draw twice, with no image in common; skip unreadable images.

    If there are too few images, both draws get the same share of their count.

    Args:
        images: to draw from.
        counts: images of the first and of the second draw; the second may be 0.
        view: resizing and cropping.
        seed: of the draw.
        max_bad_share: largest share (0 to 1) of unreadable images.

    Raises:
        DataError: fewer than 2 images for a draw, or too many are unreadable.
    """
    order = np.random.default_rng(seed).permutation(len(images.source)).tolist()
    total = sum(counts)
    unreadable = UnreadableImages(min(total, len(order)), max_bad_share, Path("no list is written"))
    seen = []
    for image in view_images(images.source, order, view, ahead=64):
        if image.view is None:
            unreadable.add(image)
            continue
        seen.append((image.view, image.label, image.name))
        if len(seen) == total:
            break
    first = min(counts[0], len(seen) * counts[0] // total)
    draws = seen[:first], seen[first : first + counts[1]]
    if any(wanted and len(draw) < 2 for wanted, draw in zip(counts, draws, strict=True)):
        where = images.settings.path or images.settings.kind
        raise DataError(
            f"There must be at least 2 readable images to compare, and 2 others to calibrate int8. "
            f"Received: {len(seen)} in {where}."
        )
    # The path on this machine stays private.
    source = {**images.facts(), "path": dataset_name(images.settings)}
    one, other = (_drawn(draw, view, {"seed": seed, "source": source}) for draw in draws)
    return one, other


def random_pixels(view: EvaluationView, *, seed: int) -> np.ndarray:
    """Return images unlike any photograph, uint8 (16, crop, crop, 3)."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (RANDOM_IMAGES, view.crop, view.crop, 3), dtype=np.uint8)


def _drawn(seen: list[tuple[np.ndarray, int, str]], view: EvaluationView, facts: dict[str, Any]) -> Drawn:
    if not seen:
        return no_images(view)
    names = hashlib.sha256("".join(f"{name}\n" for _, _, name in seen).encode())
    return Drawn(
        np.array([shown for shown, _, _ in seen], np.uint8),
        np.array([label for _, label, _ in seen], np.int64),
        {"images": len(seen), "names_sha256": names.hexdigest(), **facts},
    )


@dataclass(frozen=True)
class Reference:
    """N images and Keras' outputs, the real images first.

    Attributes:
        images: uint8 (N, crop, crop, 3), as the model sees them.
        labels: (N,) classes, -1 for none.
        real: (N,) False for random pixels.
        outputs: Keras' float32 outputs by name, (N, ...).
        weights_sha256: of the model's weights.
        view: how the images were made.
        facts: source, step and recipe, for people.
    """

    images: np.ndarray
    labels: np.ndarray
    real: np.ndarray
    outputs: dict[str, np.ndarray]
    weights_sha256: str
    view: EvaluationView
    facts: dict[str, Any]


def write_reference(path: Path, reference: Reference) -> None:
    """Write a .npz file, in a staging folder (see `filled_folder`)."""
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
    """Read a reference.

    Raises:
        UsageError: the file does not exist.
        DataError: it is damaged.
    """
    if not path.is_file():
        raise UsageError(f"Reference not found: {path}. `swav-tf export` writes it next to its files.")
    try:
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            outputs = {name: file[name] for name in facts.pop("outputs")}
            reference = Reference(
                file["images"],
                file["labels"],
                file["real"],
                outputs,
                facts.pop("weights_sha256"),
                EvaluationView(**facts.pop("view")),
                facts,
            )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} must be a reference written by `swav-tf export`; it cannot be read: {error}"
        ) from error
    lengths = {len(array) for array in (reference.labels, reference.real, *outputs.values())}
    if not len(reference.images) or lengths != {len(reference.images)} or "features" not in outputs:
        raise DataError(
            f"{path} must contain images, and features for each. Received: {len(reference.images)} images, "
            f"outputs {', '.join(outputs) or 'none'}."
        )
    return reference
