"""Exported ONNX files by ONNX Runtime, or by OpenVINO."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Literal

import numpy as np

from evaluate.backends.backend import Backend
from evaluate.backends.checksums import check_unchanged, check_weights
from evaluate.backends.foreign import TYPES, Contract, Graph, describe
from evaluate.backends.onnx_metadata import KEY, Precision, read_metadata, read_properties
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import file_sha256
from swav_tf.plumbing.system import available_cores

OPENVINO: Final = "openvino"  # not one of ONNX Runtime
OPENVINO_TYPES: Final = {"u8": "tensor(uint8)", "f32": "tensor(float)", "f16": "tensor(float16)"}
PROVIDERS: Final = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


def missing_provider(provider: str) -> str | None:
    """Return why a provider is not available here, None if it is; UsageError for an unknown name."""
    if provider == OPENVINO:
        found = importlib.util.find_spec("openvino")
        return None if found else "--provider openvino needs OpenVINO. Run: pip install 'swav-tf[openvino]'"
    if provider not in PROVIDERS:
        known = ", ".join([*PROVIDERS, OPENVINO])
        raise UsageError(f"--provider must be one of {known}. Received: {provider}.")
    needs = f"--provider {provider} needs an ONNX Runtime that has it. Received: "
    try:
        import onnxruntime as ort
    except ModuleNotFoundError as error:
        if provider == "cpu" or error.name != "onnxruntime":
            raise
        return f"{needs}none is installed. Run: pip install 'swav-tf[onnx-gpu]'"
    available = ort.get_available_providers()
    if PROVIDERS[provider] in available:
        return None
    return (
        f"{needs}onnxruntime {ort.__version__} with {', '.join(available)}. On a machine with an NVIDIA GPU: "
        "pip uninstall onnxruntime, then pip install 'swav-tf[onnx-gpu]'"
    )


def open_session(
    source: Path | bytes,
    *,
    provider: str = "cpu",
    threads: int = 0,
    spin: bool = True,
    cuda_graph: bool = False,
) -> Any:
    """Open a session of ONNX Runtime on exactly one provider, or one of OpenVINO that looks like it.

    Args:
        source: an ONNX file, or its content for `cpu`.
        provider: a key of PROVIDERS, or OPENVINO.
        threads: threads that compute one batch on a CPU; 0 for one per core.
        spin: whether these wait for work in a busy loop, which takes the cores from threads that decode.
        cuda_graph: record the launches of a run and replay them as one; on a GPU, for bound tensors only.

    Raises:
        UsageError: the provider is not available here.
        DataError: the file is damaged, or the provider cannot run it.
    """
    if (missing := missing_provider(provider)) is not None:
        raise UsageError(missing)
    if provider == OPENVINO:
        assert isinstance(source, Path)
        return OpenVinoSession(source, threads=threads)
    import onnxruntime as ort

    wanted = PROVIDERS[provider]
    name, content = (str(source), str(source)) if isinstance(source, Path) else ("the graph", source)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.log_severity_level = 3  # its warnings are about its own optimizations
    settings: dict[str, str] = {}
    if provider != "cpu":
        # Otherwise ONNX Runtime falls back to the CPU without a message.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        _load_libraries(provider)
        settings = provider_settings(Path(name), provider=provider, cuda_graph=cuda_graph)
    try:
        session = ort.InferenceSession(content, options, providers=[(wanted, settings)])
    except Exception as error:  # ONNX Runtime's errors have no other common class
        where = f"onnxruntime {ort.__version__} on {provider}"
        raise DataError(f"{name} cannot run in {where}: {error}") from error
    if session.get_providers()[0] != wanted:
        raise UsageError(
            f"--provider {provider} must be able to run {name}. Received: a session on "
            f"{', '.join(session.get_providers())}. Check the GPU, its driver and the CUDA libraries."
        )
    return session


def _load_libraries(provider: str) -> None:
    """Load CUDA's and TensorRT's libraries from their Python packages, where the system has none."""
    import onnxruntime as ort

    with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
    if provider == "tensorrt":
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")  # it loads them


def provider_settings(path: Path, *, provider: str, cuda_graph: bool) -> dict[str, str]:
    """Return ONNX Runtime's options for `cuda` or `tensorrt`."""
    graph = "1" if cuda_graph else "0"
    if provider == "cuda":
        return {"enable_cuda_graph": graph}
    cache, precision = engine_cache(), read_properties(path).get("precision")
    cache.mkdir(parents=True, exist_ok=True)
    return {
        "trt_cuda_graph_enable": graph,
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        # Its own key leaves out the weights: a retrained model would get the old engine.
        "trt_engine_cache_prefix": file_sha256(path)[:32],
        # Without its flag TensorRT 10 computes lower precisions in float32.
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        "trt_int8_enable": "1" if precision == "int8" else "0",
    }


def engine_cache() -> Path:
    """Return the folder of the engines that ONNX Runtime's TensorRT provider builds, which takes minutes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swav-tf" / "tensorrt"


class OpenVinoSession:
    """The part of ONNX Runtime's session that is used here, by OpenVINO in bfloat16 if the CPU has it.

    Attributes:
        bfloat16: whether layers in float32 are computed in bfloat16, at twice the speed and a relative error of some
            thousandths.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        import openvino

        core = openvino.Core()
        self.bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        try:
            self._model = core.read_model(path)
            compiled = core.compile_model(
                self._model,
                "CPU",
                {
                    "INFERENCE_NUM_THREADS": threads or available_cores(),
                    "INFERENCE_PRECISION_HINT": "bf16" if self.bfloat16 else "f32",
                },
            )
        except RuntimeError as error:
            raise DataError(f"{path} cannot run in OpenVINO {openvino.__version__}: {error}") from error
        self._request = compiled.create_infer_request()

    def get_inputs(self) -> list[Any]:
        """Return name, shape and type of each input, as ONNX Runtime does."""
        return [_described(port) for port in self._model.inputs]

    def get_outputs(self) -> list[Any]:
        """Return name, shape and type of each output."""
        return [_described(port) for port in self._model.outputs]

    def run(self, names: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the outputs of these names."""
        outputs = self._request.infer(dict(inputs))
        by_name = {port.get_any_name(): value for port, value in outputs.items()}
        return [np.array(by_name[name]) for name in names]  # copies: the request reuses its memory


def _described(port: Any) -> Any:
    shape = [d.get_length() if d.is_static else None for d in port.get_partial_shape()]
    kind = port.get_element_type().get_type_name()
    return SimpleNamespace(name=port.get_any_name(), shape=shape, type=OPENVINO_TYPES.get(kind, kind))


class BoundRun:
    """Runs on tensors that stay on their device, for the batch size of the first `images`."""

    def __init__(self, session: Any, *, provider: str, images: np.ndarray) -> None:
        import onnxruntime as ort

        device = "cpu" if provider == "cpu" else "cuda"
        self._session, self._binding = session, session.io_binding()
        self._input = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(images), device, 0)
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._input)
        self._outputs: dict[str, Any] = {}
        for output in session.get_outputs():
            shape = [len(images), *output.shape[1:]]
            # Bound once: a CUDA graph replays writes to the addresses that it recorded.
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, TYPES[output.type], device, 0)
            self._binding.bind_ortvalue_output(output.name, value)
            self._outputs[output.name] = value

    def run(self) -> None:
        """Compute the bound batch and wait until it is done."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def run_from_host(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Copy a batch of the same shape in, compute it and copy the outputs out."""
        self._input.update_inplace(images)
        self.run()
        return {name: value.numpy() for name, value in self._outputs.items()}


class OnnxBackend(Backend):
    """An ONNX file by ONNX Runtime or OpenVINO. For `provider`, `threads` and `cuda_graph` see `open_session`.

    Args:
        path: a file from `swav-tf export`, whose metadata specify its preprocessing, or a third-party file.
        contract: of a third-party file, which has no other way to say how it is used.
        only_timing: open a third-party file without a contract, for images that are not normalized.

    Attributes:
        gate: the precision whose limits its features meet: `bf16` if OpenVINO computes a float32 file in bfloat16.

    Raises:
        UsageError: the provider is not available here, or a contract is missing or does not fit.
        DataError: the file is damaged, changed since its export, or takes other inputs than images.
    """

    def __init__(
        self,
        path: Path,
        *,
        provider: str = "cpu",
        threads: int = 0,
        spin: bool = True,
        cuda_graph: bool = False,
        contract: Contract | None = None,
        only_timing: bool = False,
    ) -> None:
        self.checksum = check_unchanged(path)
        self._session = open_session(
            path, provider=provider, threads=threads, spin=spin, cuda_graph=cuda_graph
        )
        self._provider = provider
        properties = read_properties(path)
        self.is_foreign, words = KEY not in properties, None
        if self.is_foreign and (contract is not None or only_timing):
            self.metadata, self.graph, words = describe(path, self._session, contract)
        else:
            self.metadata = read_metadata(properties, str(path))
            self.graph = self._own_graph(path)
            if contract is not None:
                raise UsageError(
                    "--view, --mean, --std and --output-name are for third-party files. Received: "
                    f"{path}, from `swav-tf export`, whose metadata specify them."
                )
        self.input_view, self.data = self.metadata.preprocessing.view, self.metadata.data
        self.outputs = tuple(self.graph.outputs)
        runner = f"onnxruntime {provider}"
        self.gate: Precision | Literal["bf16"] = self.metadata.precision
        if provider == OPENVINO:
            in_half = self._session.bfloat16 and self.gate == "fp32"
            runner, self.gate = ("openvino in bfloat16", "bf16") if in_half else ("openvino", self.gate)
        facts = self.metadata.identity(path, runner, self.checksum.sha256)
        self.facts = replace(facts, contract=words)
        self.feature_dim = self._feature_dim(path, only_timing=only_timing)

    def _own_graph(self, path: Path) -> Graph:
        """Return how an exported graph is run; refuse one that differs from its metadata."""
        check_weights(path, self.metadata.weights_file)
        outputs = [output.name for output in self._session.get_outputs()]
        if "features" not in outputs:
            raise DataError(f"{path} must have an output `features`. Received: {', '.join(outputs)}.")
        [given] = self._session.get_inputs()
        wanted = self.metadata.preprocessing.input_shape(1)
        sides = zip(given.shape[1:], wanted[1:], strict=False)
        fits = all(not isinstance(found, int) or found == side for found, side in sides)
        kind = "tensor(uint8)" if self.metadata.preprocessing.inside else "tensor(float)"
        if len(given.shape) != 4 or not fits or given.type != kind:
            raise DataError(
                f"{path} must take the input in its metadata, {kind} {list(wanted[1:])} per image. Received: "
                f"{given.type} {given.shape[1:]}. Export again."
            )
        return Graph("images", TYPES[kind], {name: name for name in outputs})

    def _feature_dim(self, path: Path, *, only_timing: bool) -> int:
        """Return the length of the features; of a third-party graph by running it, as its shapes may be missing."""
        if not self.is_foreign:
            shapes = {output.name: output.shape for output in self._session.get_outputs()}
            return int(shapes["features"][1])
        side = self.input_view.crop
        blank = self.prepare(np.zeros((self.graph.batch or 1, side, side, 3), np.uint8))
        name = next(iter(self.graph.outputs.values()))
        each = self._session.run([name], {self.graph.input: blank})[0][0]
        if not only_timing and each.size not in each.shape:
            raise UsageError(
                f"--output-name must name an output of one vector per image. Received: {name} of {path}, of shape "
                f"{list(each.shape)}."
            )
        return int(each.size)

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        prepared, size = self.prepare(images), self.graph.batch or len(images)
        parts = [self._run_part(prepared[start : start + size]) for start in range(0, len(images), size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def _run_part(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        """Compute a batch; fill one of a graph that takes a fixed number of images with zeros."""
        count = len(prepared)
        if (missing := (self.graph.batch or count) - count) > 0:
            prepared = np.concatenate([prepared, np.zeros((missing, *prepared.shape[1:]), prepared.dtype)])
        try:
            values = self._session.run([*self.graph.outputs.values()], {self.graph.input: prepared})
        except Exception as error:  # ONNX Runtime's errors have no other common class
            raise DataError(
                f"{self.facts.path} cannot run on {count} images in {self.facts.runner}: {error} Export again, or "
                "use a smaller --batch if memory is short."
            ) from error
        if not self.is_foreign:
            return dict(zip(self.outputs, values, strict=True))
        arrays = [np.asarray(value, np.float32)[:count] for value in values]
        return {
            name: array.reshape(count, -1) if name == "features" else array
            for name, array in zip(self.outputs, arrays, strict=True)
        }

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Return the graph's input for uint8 images (n, crop, crop, 3)."""
        return self.metadata.preprocessing.apply(images).astype(self.graph.dtype, copy=False)

    def bound(self, images: np.ndarray) -> BoundRun:
        """Return runs of one batch size on tensors that stay on the device; the first batch is of uint8 images."""
        self.check(images)
        return BoundRun(self._session, provider=self._provider, images=self.prepare(images))
