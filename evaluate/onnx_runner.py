"""A file by `swav-tf export`, run by ONNX Runtime: on the processor that is asked for, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from evaluate.onnx_metadata import read_metadata
from evaluate.runners import ModelFacts, check_images
from swav_tf.errors import DataError, UsageError

PROVIDERS: Final = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class OnnxRunner:
    """An exported file (see `Runner`); its preprocessing is the one that it tells.

    Args:
        path: the file.
        provider: a key of PROVIDERS.
        threads: that compute one batch on a CPU; 0 for one a core.

    Raises:
        UsageError: there is no such provider here.
        DataError: the file is damaged, or not one by `swav-tf export`.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, *, provider: str = "cpu", threads: int = 0) -> None:
        self._session = _open_session(path, provider, threads)
        properties = self._session.get_modelmeta().custom_metadata_map
        self.metadata = read_metadata(properties, str(path))
        self.view = self.metadata.preprocessing.view
        self.data = self.metadata.data
        self.outputs = [output.name for output in self._session.get_outputs()]
        if "features" not in self.outputs:
            raise DataError(f"{path} must have an output `features`. Received: {', '.join(self.outputs)}.")
        self.feature_dim = int(self._session.get_outputs()[self.outputs.index("features")].shape[1])
        self.facts = ModelFacts(
            path=str(path),
            runner=f"{self.name} {provider} {self.metadata.precision}",
            weights_sha256=self.metadata.weights_sha256,
            step=self.metadata.step,
            recipe=self.metadata.recipe,
        )

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The file's outputs for a batch, as `Runner.run` has it."""
        check_images(images, self.view)
        values = self._session.run(self.outputs, {"images": self.prepared(images)})
        return dict(zip(self.outputs, values, strict=True))

    def prepared(self, images: np.ndarray) -> np.ndarray:
        """What the graph takes for uint8 images: these themselves, or normalised and channels first."""
        how = self.metadata.preprocessing
        if how.inside:
            return images
        scaled = images.astype(np.float32) / np.float32(255)
        normalised = (scaled - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def _open_session(path: Path, provider: str, threads: int) -> Any:
    """A session on exactly one provider."""
    import onnxruntime as ort

    if provider not in PROVIDERS:
        raise UsageError(f"--provider must be one of {', '.join(PROVIDERS)}. Received: {provider}.")
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise UsageError(
            f"--provider {provider} needs an ONNX Runtime that has it. Received: onnxruntime {ort.__version__} "
            f"with {', '.join(ort.get_available_providers())}. On a machine with an NVIDIA GPU: "
            "pip uninstall onnxruntime, then pip install 'swav-tf[gpu]'"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # its warnings are about its own optimisations
    if provider != "cpu":
        # Without this a GPU that is missing, or an operator that it lacks, ends on the CPU in silence.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:  # ONNX Runtime's errors have no common class but this
        raise DataError(
            f"{path} cannot be run by onnxruntime {ort.__version__} on {provider}: {error}"
        ) from error
    if session.get_providers()[0] != wanted:
        raise UsageError(
            f"--provider {provider} must be able to run {path}. Received: a session on "
            f"{', '.join(session.get_providers())}; see that GPU, driver and CUDA libraries are there."
        )
    return session
