"""TensorRT or TensorRT-RTX, and the memory of the GPU."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from swav_tf.plumbing.errors import DataError, SwavError, UsageError
from swav_tf.recipe.section import Section


class GpuError(SwavError):
    """CUDA refused a call."""


def call(function: Any, *arguments: Any) -> Any:
    """Calls CUDA and gives what it answers besides the status.

    Raises:
        GpuError: the status is no success.
    """
    status, *answers = function(*arguments)
    if int(status):
        raise GpuError(
            f"The GPU refused {function.__name__}: {status.name}. nvidia-smi shows whether its memory is full."
        )
    return answers[0] if answers else None


class Buffer:
    """A tensor on the GPU, and page-locked memory of the same size on this side, from where copies are quick.

    Args:
        shape: of the largest batch.
        dtype: of its elements.
        runtime: `cuda.bindings.runtime`.

    Attributes:
        host: the memory on this side, of that shape.
        device: address on the GPU.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, runtime: Any) -> None:
        self._runtime = runtime
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.device = int(call(runtime.cudaMalloc, size))
        self._host = int(call(runtime.cudaMallocHost, size))
        memory = (ctypes.c_uint8 * size).from_address(self._host)
        self.host: np.ndarray = np.frombuffer(memory, dtype).reshape(shape)

    def send(self, count: int, stream: Any) -> None:
        """Queues the copy of the first `count` rows to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(self.device, self._host, count, kind, stream)

    def fetch(self, count: int, stream: Any) -> None:
        """Queues the copy of the first `count` rows from the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(self._host, self.device, count, kind, stream)

    def _copy(self, target: int, source: int, count: int, kind: Any, stream: Any) -> None:
        call(self._runtime.cudaMemcpyAsync, target, source, self.host[:count].nbytes, kind, stream)

    def free(self) -> None:
        """Gives the memory back; the buffer must not be used any more."""
        self._runtime.cudaFree(self.device)
        self._runtime.cudaFreeHost(self._host)


class Graph:
    """Work of a stream, recorded once and started again by a single call.

    Args:
        record: puts the work on the stream; it is called once and runs nothing.
        stream: a CUDA stream.
        runtime: `cuda.bindings.runtime`.
    """

    def __init__(self, record: Any, stream: Any, runtime: Any) -> None:
        self._runtime = runtime
        # Thread-local: what other threads do with the GPU meanwhile is not our affair.
        call(
            runtime.cudaStreamBeginCapture,
            stream,
            runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        )
        try:
            record()
        finally:  # else the stream could not be used any more
            graph = call(runtime.cudaStreamEndCapture, stream)
        self._started = call(runtime.cudaGraphInstantiate, graph, 0)
        call(runtime.cudaGraphDestroy, graph)

    def start(self, stream: Any) -> None:
        """Queues the work."""
        call(self._runtime.cudaGraphLaunch, self._started, stream)

    def free(self) -> None:
        """Gives its memory back."""
        self._runtime.cudaGraphExecDestroy(self._started)


ModuleName = Literal["tensorrt", "tensorrt_rtx"]
NAMES: Final[dict[ModuleName, str]] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
INSTALL: Final[dict[ModuleName, str]] = {
    "tensorrt": "pip install 'swav-tf[tensorrt]'",
    "tensorrt_rtx": "pip install tensorrt-rtx",
}
OLDEST: Final = (10, 12)  # of TensorRT: strongly typed engines with everything that is used here
GPU_SECONDS: Final = 30  # that the driver's tool may take to answer


class Gpu(Section):
    """What an engine depends on.

    Attributes:
        name: as the driver tells it.
        compute_capability: major.minor.
        driver: its version.
    """

    name: str
    compute_capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability}, driver {self.driver})"


class NoGpuError(UsageError):
    """There is no GPU that could be used; the message says what is missing."""


@dataclass(frozen=True)
class TensorRT:
    """The module and what it is.

    Attributes:
        module: it.
        module_name: what it is imported by.
        version: its own.
    """

    module: Any
    module_name: ModuleName
    version: str

    @property
    def name(self) -> str:
        """What to call it: TensorRT-RTX is another product than TensorRT."""
        return NAMES[self.module_name]

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX: builds without a GPU, compiles kernels when an engine is first run."""
        return self.module_name == "tensorrt_rtx"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def find_tensorrt(module_name: ModuleName | None = None) -> TensorRT:
    """The module by its name; without a name TensorRT, or TensorRT-RTX if that is the only one here.

    Raises:
        UsageError: it is not installed, cannot be loaded, or is too old.
    """
    if module_name is None:
        only_rtx = importlib.util.find_spec("tensorrt") is None and importlib.util.find_spec("tensorrt_rtx")
        module_name = "tensorrt_rtx" if only_rtx else "tensorrt"
    try:
        module = importlib.import_module(module_name)
    except (ImportError, OSError) as error:  # OSError: a library of its own is missing
        raise UsageError(
            f"This needs {NAMES[module_name]} (the package {module_name}). Received: {error}. "
            f"Run: {INSTALL[module_name]}"
        ) from error
    found = TensorRT(module, module_name, str(module.__version__))
    if not found.is_rtx and _numbers(found.version)[:2] < OLDEST:
        raise UsageError(
            f"TensorRT must be {'.'.join(map(str, OLDEST))} or newer. Received: {found.version}. "
            f"Run: {INSTALL['tensorrt']}"
        )
    return found


def the_gpu() -> Gpu:
    """The GPU that CUDA would use.

    Raises:
        NoGpuError: there is none, or the package that asks for it is missing.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise NoGpuError(
            f"A GPU is reached by the package cuda-python. Received: {error}. Run: {INSTALL['tensorrt']}"
        ) from error
    try:
        status, count = runtime.cudaGetDeviceCount()
    except Exception as problem:  # its loader's errors have no common class
        raise NoGpuError(f"This needs an NVIDIA GPU and its driver. Received: {problem}.") from problem
    if int(status) or not count:
        raise NoGpuError(
            f"This needs an NVIDIA GPU and its driver. Received: {status.name if int(status) else 'no device'}. "
            "See that nvidia-smi shows the GPU, and that CUDA_VISIBLE_DEVICES does not hide it."
        )
    device = _answer(runtime.cudaGetDevice())
    facts = _answer(runtime.cudaGetDeviceProperties(device))
    return Gpu(
        name=facts.name.decode().rstrip("\0"),
        compute_capability=f"{facts.major}.{facts.minor}",
        driver=_driver() or f"CUDA {_answer(runtime.cudaDriverGetVersion())}",
    )


def gpu_or_none() -> Gpu | None:
    """The GPU, or None without one."""
    try:
        return the_gpu()
    except NoGpuError:
        return None


class Log:
    """What TensorRT says: errors to be told, and the layers that a builder lists at its end.

    Attributes:
        logger: to be handed to builders, runtimes and refitters.
        errors: since `clear`.
        listing: the newest list of an engine's layers, or "".
    """

    def __init__(self, module: Any) -> None:
        self.errors: list[str] = []
        self.listing = ""
        log = self
        severe = (module.ILogger.Severity.INTERNAL_ERROR, module.ILogger.Severity.ERROR)

        class Logger(module.ILogger):  # type: ignore[misc]  # the base class is known only now
            def log(self, severity: Any, message: str) -> None:
                if severity in severe:
                    log.errors.append(message)
                elif message.startswith(("Layers:", "Engine Layer Information:")):
                    log.listing = message

        self.logger = Logger()

    def clear(self) -> None:
        """Forgets what was said."""
        self.errors.clear()
        self.listing = ""

    def told(self) -> str:
        """The errors as one line, each once."""
        return "; ".join(dict.fromkeys(" ".join(error.split()) for error in self.errors)) or "no reason given"


@functools.cache
def _log(module_name: str) -> Log:
    # TensorRT keeps the first logger that it is given for as long as the process lives.
    return Log(importlib.import_module(module_name))


def fresh_log(tensorrt: TensorRT) -> Log:
    """The one log of the process, empty."""
    log = _log(tensorrt.module_name)
    log.clear()
    return log


def load_engine(tensorrt: TensorRT, data: bytes, *, version_compatible: bool, what: str) -> tuple[Any, Any]:
    """A runtime and the engine that it made of a plan; the runtime must live as long.

    Args:
        tensorrt: that runs it; the caller has compared it with the plan's facts.
        data: the plan.
        version_compatible: whether the plan brings code of its own that may be run.
        what: to call the plan in a message.

    Raises:
        DataError: TensorRT refuses it.
    """
    log = fresh_log(tensorrt)
    runtime = tensorrt.module.Runtime(log.logger)
    if version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise DataError(f"{what} cannot be loaded by {tensorrt}: {log.told()}.")
    return runtime, engine


def _answer(result: tuple[Any, Any]) -> Any:
    error, value = result
    if int(error):
        raise NoGpuError(f"The GPU must tell what it is. Received: {error.name}.")
    return value


def _driver() -> str | None:
    """The driver's version; None where it does not tell."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=GPU_SECONDS, check=True,
        )  # fmt: skip
        return told.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        pass  # a container without the tool
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return next((word for word in words if _numbers(word)), None)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    return tuple(int(part) for part in parts) if len(parts) > 1 and all(map(str.isdecimal, parts)) else ()
