"""Exported ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from evaluate.backends.backend import ModelIdentity, check_images, prepared
from evaluate.backends.checksums import check_unchanged, check_weights, file_sha256
from evaluate.backends.onnx_metadata import read_metadata
from swav_tf.plumbing.errors import DataError, UsageError

PROVIDERS: Final = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


def missing_provider(provider: str) -> str | None:
    """Why the installed ONNX Runtime cannot have a provider; None if it has it.

    Raises:
        UsageError: there is no provider of that name.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"--provider must be one of {', '.join(PROVIDERS)}. Received: {provider}.")
    try:
        import onnxruntime as ort
    except ModuleNotFoundError as error:
        if provider == "cpu" or error.name != "onnxruntime":
            raise
        return (
            f"--provider {provider} needs an ONNX Runtime that has it. Received: none is installed. "
            "Run: pip install 'swav-tf[onnx-gpu]'"
        )
    if PROVIDERS[provider] in ort.get_available_providers():
        return None
    return (
        f"--provider {provider} needs an ONNX Runtime that has it. Received: onnxruntime {ort.__version__} "
        f"with {', '.join(ort.get_available_providers())}. On a machine with an NVIDIA GPU: "
        "pip uninstall onnxruntime, then pip install 'swav-tf[onnx-gpu]'"
    )


def open_session(
    source: Path | bytes, *, provider: str = "cpu", threads: int = 0, cuda_graph: bool = False
) -> Any:
    """A session on exactly one provider.

    Args:
        source: an ONNX file or its content.
        provider: a key of PROVIDERS.
        threads: that compute one batch on a CPU; 0 for one per core.
        cuda_graph: record the launches of a run and repeat them as one; on a GPU, for bound tensors only.

    Raises:
        UsageError: there is no such provider here.
        DataError: the file is damaged, or the provider cannot run it.
    """
    if (missing := missing_provider(provider)) is not None:
        raise UsageError(missing)
    import onnxruntime as ort

    wanted, name = PROVIDERS[provider], source if isinstance(source, Path) else "the graph"
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # its warnings are about its own optimisations
    if provider != "cpu":
        # Without this a GPU that is missing, or an operator that it lacks, ends on the CPU in silence.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        _load_libraries(provider)
    settings = provider_settings(source, provider=provider, cuda_graph=cuda_graph)
    try:
        session = ort.InferenceSession(
            str(source) if isinstance(source, Path) else source, options, providers=[(wanted, settings)]
        )
    except Exception as error:  # ONNX Runtime's errors have no common class but this
        raise DataError(
            f"{name} cannot be run by onnxruntime {ort.__version__} on {provider}: {error}"
        ) from error
    if session.get_providers()[0] != wanted:
        raise UsageError(
            f"--provider {provider} must be able to run {name}. Received: a session on "
            f"{', '.join(session.get_providers())}; see that GPU, driver and CUDA libraries are there."
        )
    return session


def _load_libraries(provider: str) -> None:
    """CUDA's and TensorRT's libraries from their Python packages, where the system has none."""
    import onnxruntime as ort

    with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
    if provider == "tensorrt":
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")  # it loads them


def provider_settings(source: Path | bytes, *, provider: str, cuda_graph: bool) -> dict[str, str]:
    """The provider's own options, as ONNX Runtime takes them."""
    graph = "1" if cuda_graph else "0"
    if provider == "cuda":
        return {"enable_cuda_graph": graph}
    if provider != "tensorrt":
        return {}
    checksum = file_sha256(source) if isinstance(source, Path) else hashlib.sha256(source).hexdigest()
    cache = engine_cache()
    cache.mkdir(parents=True, exist_ok=True)
    precision = _precision_of(source)
    return {
        "trt_cuda_graph_enable": graph,
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        # Its own key leaves out the weights: a model that was trained on would get the engine of before.
        "trt_engine_cache_prefix": checksum[:32],
        # Without its flag TensorRT 10 computes what the graph has in a lower precision in float32.
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        "trt_int8_enable": "1" if precision == "int8" else "0",
    }


def engine_cache() -> Path:
    """Where engines that ONNX Runtime has TensorRT build are kept: a build takes minutes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swav-tf" / "tensorrt"


def _precision_of(source: Path | bytes) -> str:
    """What the metadata say; fp32 of a graph without any."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        given = str(source) if isinstance(source, Path) else source
        facts = ort.InferenceSession(given, options, providers=["CPUExecutionProvider"]).get_modelmeta()
    except Exception:  # what is wrong with the file is told when it is opened for good
        return "fp32"
    return str(facts.custom_metadata_map.get("precision", "fp32"))


class BoundRun:
    """Runs on tensors that stay where they are computed, for one size of batch.

    Args:
        session: of `open_session`.
        provider: of that session.
        images: what the graph takes, (batch, ...); stays bound.
    """

    def __init__(self, session: Any, *, provider: str, images: np.ndarray) -> None:
        import onnxruntime as ort

        device = "cpu" if provider == "cpu" else "cuda"
        self._session, self._binding = session, session.io_binding()
        self._input = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(images), device, 0)
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._input)
        self._outputs: dict[str, Any] = {}
        for output in session.get_outputs():
            shape = [len(images), *output.shape[1:]]
            # Bound at one place for good: a CUDA graph repeats writes to the addresses that it was recorded with.
            self._outputs[output.name] = ort.OrtValue.ortvalue_from_shape_and_type(
                shape, np.float32, device, 0
            )
            self._binding.bind_ortvalue_output(output.name, self._outputs[output.name])

    def run(self) -> None:
        """Computes the bound batch, and waits until it is done."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def run_from_host(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Copies a batch of the same shape in, computes it, and copies the outputs out."""
        self._input.update_inplace(images)
        self.run()
        return {name: value.numpy() for name, value in self._outputs.items()}


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
