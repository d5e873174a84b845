"""The interface that every inference backend provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image as PillowImage

from swav_tf.data.augment import Image
from swav_tf.data.decode import Decoding, ImageLike, UndecodableImage, evaluation_view, read_pixels
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.parallel import map_ahead
from swav_tf.plumbing.system import available_cores
from swav_tf.recipe.data import Data, EvaluationView


@dataclass(frozen=True)
class ModelIdentity:
    """The facts that identify a model."""

    path: str  # of its folder or file
    runner: str  # `keras`, `onnxruntime` with provider and precision, or TensorRT with version and precision
    weights_sha256: str  # of the weights' file; features of equal weights can be compared
    step: int  # optimizer steps that it was trained for
    recipe: str  # its name
    file_sha256: str | None = None  # of an exported file; None for a run folder
    contract: str | None = None  # of a third-party file: the options for its preprocessing and output

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as plain data; `contract` for third-party files only."""
        facts = asdict(self)
        return facts if self.contract is not None else {k: v for k, v in facts.items() if k != "contract"}


class Backend(ABC):
    """A model that is ready to run."""

    input_view: EvaluationView  # the evaluation view that its images must be in
    outputs: tuple[str, ...]  # their names, always with `features`
    feature_dim: int  # F
    facts: ModelIdentity
    data: Data  # settings of its training images, the defaults for other images

    def features(
        self, images: np.ndarray | Iterable[ImageLike], *, batch_size: int = 32, threads: int = 0
    ) -> np.ndarray:
        """Return the features (n, F), float32, of images, in their order.

        Args:
            images: a batch in the input view, see `run`; or images of any size, which are decoded, resized and cropped
                as in training: paths or contents of files, images of Pillow, uint8 RGB arrays (height, width, 3).
            batch_size: images of any size that the model gets at once; memory holds three batches.
            threads: threads that decode; 0 for one per core.

        Raises:
            UsageError: `images` is one image, not a list.
            DataError: an image cannot be read.
        """
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return self.run(images)["features"]
        if isinstance(images, (str, bytes, Path, PillowImage)):
            raise UsageError(f"images must be a list, such as [image]. Received: {type(images).__name__}.")
        threads = threads or available_cores()
        parts = [np.zeros((0, self.feature_dim), np.float32)]
        with closing(
            map_ahead(self._view_of, enumerate(images), threads=threads, ahead=2 * batch_size)
        ) as views:
            while batch := list(islice(views, batch_size)):
                parts.append(self.run(np.stack(batch))["features"])
        return np.concatenate(parts)

    def _view_of(self, numbered: tuple[int, ImageLike]) -> Image:
        number, image = numbered
        try:
            return evaluation_view(read_pixels(image, Decoding.of(self.data)), self.input_view)
        except (UndecodableImage, OSError) as error:
            name = image if isinstance(image, (str, Path)) else f"image {number}"
            raise DataError(f"{name} cannot be read: {error}. Repair it or leave it out.") from error

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute all outputs of uint8 RGB images (n, crop, crop, 3) in the input view, n >= 1, not normalized.

        Returns:
            float32 arrays by name: `features` (n, F) and, if the model has them, `projections` (n, D) of length 1,
            `scores` (n, K), their cosines with the prototypes, or a classifier's `logits` (n, classes).

        Raises:
            DataError: it cannot run, or an output is not finite.
        """
        self.check(images)
        outputs = self._run(images)
        for name, values in outputs.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise DataError(
                    f"{self.facts.path} must compute finite outputs. Received: `{name}` with NaN or infinity, by "
                    f"{self.facts.runner}. Its weights are damaged, or float16 is too small for its values: use a "
                    "float32 file. For a third-party file, check --mean and --std too."
                )
        return outputs

    def check(self, images: np.ndarray) -> None:
        """Raise ValueError if the images have another type or shape than `run` takes."""
        side = self.input_view.crop
        if images.dtype != np.uint8 or len(images) < 1 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"Images must be uint8 (n, {side}, {side}, 3), n >= 1. Received: {images.dtype} {images.shape}."
            )

    @abstractmethod
    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]: ...
