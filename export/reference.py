"""Images and what Keras says of them in float32: the measure that lies beside every export. No TensorFlow."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from swav_tf.errors import DataError, UsageError
from swav_tf.recipe import EvaluationView

REFERENCE: Final = "reference.npz"


@dataclass(frozen=True)
class Reference:
    """N images, the real ones first.

    Attributes:
        images: uint8 (N, crop, crop, 3), as the model sees them.
        labels: (N,) classes, -1 for none.
        real: (N,) False for random pixels.
        outputs: Keras' float32 outputs by name, (N, ...).
        weights_sha256: of the model's weights.
        view: how the images were made.
        facts: where they come from and more, for people.
    """

    images: np.ndarray
    labels: np.ndarray
    real: np.ndarray
    outputs: dict[str, np.ndarray]
    weights_sha256: str
    view: EvaluationView
    facts: dict[str, Any]


def write_reference(path: Path, reference: Reference) -> None:
    """Writes it as .npz, in a folder that nobody reads yet (see `filled_folder`).

    Raises:
        OSError: the disk is full or refuses.
    """
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
        **reference.outputs,  # type: ignore[arg-type]  # numpy's own keyword is none of our names
    )


def read_reference(path: Path) -> Reference:
    """Reads it.

    Raises:
        UsageError: there is none.
        DataError: it is damaged.
    """
    if not path.is_file():
        raise UsageError(
            f"`verify` needs the reference that `swav-tf export` writes beside its files. Received: no {path}."
        )
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
            f"{path} must be a reference by `swav-tf export`; it cannot be read: {error}"
        ) from error
    lengths = {len(array) for array in (reference.labels, reference.real, *outputs.values())}
    if not len(reference.images) or lengths != {len(reference.images)} or "features" not in outputs:
        raise DataError(
            f"{path} must hold images, and features for each. Received: {len(reference.images)} images, "
            f"outputs {', '.join(outputs) or 'none'}."
        )
    return reference
