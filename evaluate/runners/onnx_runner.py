"""A file by `swav-tf export`, run by ONNX Runtime: on the processor that is asked for, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evaluate.runners.checksums import check_unchanged, check_weights
from evaluate.runners.onnx_metadata import read_metadata
from evaluate.runners.onnx_session import BoundRun, open_session
from evaluate.runners.preparing import prepared
from evaluate.runners.runner import ModelIdentity, check_images
from swav_tf.errors import DataError


class OnnxRunner:
    """An exported file (see `Runner`); its preprocessing is the one that it tells.

    Args:
        path: the file.
        provider: a key of PROVIDERS.
        threads: that compute one batch on a CPU; 0 for one per core.
        cuda_graph: for `bound` on a GPU: repeat a run's launches as one.

    Attributes:
        checksum: of the file.
        metadata: what it tells about itself.
        outputs: their names.

    Raises:
        UsageError: there is no such provider here.
        DataError: the file is damaged, is not what its export recorded, or not one by `swav-tf export`.
    """

    name = "onnxruntime"

    def __init__(
        self, path: Path, *, provider: str = "cpu", threads: int = 0, cuda_graph: bool = False
    ) -> None:
        self.checksum = check_unchanged(path)
        self._session = open_session(path, provider=provider, threads=threads, cuda_graph=cuda_graph)
        self._provider = provider
        properties = self._session.get_modelmeta().custom_metadata_map
        self.metadata = read_metadata(properties, str(path))
        check_weights(path, self.metadata.weights_file)
        self.view = self.metadata.preprocessing.view
        self.data = self.metadata.data
        self.outputs = [output.name for output in self._session.get_outputs()]
        if "features" not in self.outputs:
            raise DataError(f"{path} must have an output `features`. Received: {', '.join(self.outputs)}.")
        self._check_input(path)
        self.feature_dim = int(self._session.get_outputs()[self.outputs.index("features")].shape[1])
        self.facts = ModelIdentity(
            path=str(path),
            runner=f"{self.name} {provider} {self.metadata.precision}",
            weights_sha256=self.metadata.weights_sha256,
            step=self.metadata.step,
            recipe=self.metadata.recipe,
            file_sha256=self.checksum.sha256,
        )

    def _check_input(self, path: Path) -> None:
        """Refuses a graph that takes other images than its metadata tell."""
        [given] = self._session.get_inputs()
        wanted = self.prepared_shape(1)
        fits = [
            not isinstance(found, int) or found == side
            for found, side in zip(given.shape, wanted, strict=False)
        ]
        kind = "tensor(uint8)" if self.metadata.preprocessing.inside else "tensor(float)"
        if len(given.shape) != 4 or not all(fits[1:]) or given.type != kind:
            raise DataError(
                f"{path} must take what its metadata tell, {kind} {list(wanted[1:])} for each image. Received: "
                f"{given.type} {given.shape[1:]}. Export it anew."
            )

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The file's outputs for a batch, as `Runner.run` has it.

        Raises:
            DataError: ONNX Runtime cannot compute the graph: it is damaged, or too large for the memory.
        """
        check_images(images, self.view)
        prepared_images = self.prepared(images)
        try:
            values = self._session.run(self.outputs, {"images": prepared_images})
        except Exception as error:  # ONNX Runtime's errors have no common class but this
            raise DataError(
                f"{self.facts.path} cannot be run on {len(images)} images by ONNX Runtime: {error} Export it anew, or "
                "give a smaller --batch-size where memory is short."
            ) from error
        return dict(zip(self.outputs, values, strict=True))

    def bound(self, images: np.ndarray) -> BoundRun:
        """Runs of one size of batch on tensors that stay on the processor; the batch is of uint8 images."""
        check_images(images, self.view)
        return BoundRun(self._session, provider=self._provider, images=self.prepared(images))

    def prepared_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of what the graph takes for so many images."""
        side = self.view.crop
        return (batch, side, side, 3) if self.metadata.preprocessing.inside else (batch, 3, side, side)

    def prepared(self, images: np.ndarray) -> np.ndarray:
        """What the graph takes for uint8 images: these themselves, or normalised and channels first."""
        return prepared(images, self.metadata.preprocessing)
