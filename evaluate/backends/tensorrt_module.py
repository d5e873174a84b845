"""Find TensorRT or TensorRT-RTX, the GPU, and what Polygraphy logs about them."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.nvidia import gpus
from swav_tf.recipe.section import Section

ModuleName = Literal["tensorrt", "tensorrt_rtx"]
NAMES: Final[dict[ModuleName, str]] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
INSTALL: Final[dict[ModuleName, str]] = {
    "tensorrt": "pip install 'swav-tf[tensorrt]'",
    "tensorrt_rtx": "pip install tensorrt-rtx polygraphy",
}
OLDEST: Final = (10, 12)  # the first TensorRT whose strongly typed networks have all that is used here
LAST_ERRORS: Final = 2


class NoGpuError(UsageError):
    """Report that no GPU can be used, and what is missing."""


class Gpu(Section):
    """The facts of a GPU that an engine depends on."""

    name: str
    compute_capability: str  # major.minor
    driver: str  # its version

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability}, driver {self.driver})"


@dataclass(frozen=True)
class TensorRT:
    """TensorRT or TensorRT-RTX, two products with nearly the same interface."""

    module: Any
    module_name: ModuleName
    version: str

    @property
    def is_rtx(self) -> bool:
        """Return whether it is TensorRT-RTX, which builds without a GPU and compiles kernels at the first run."""
        return self.module_name == "tensorrt_rtx"

    def __str__(self) -> str:
        return f"{NAMES[self.module_name]} {self.version}"


def find_tensorrt(module_name: ModuleName | None = None) -> TensorRT:
    """Import TensorRT and configure Polygraphy for it; without a name TensorRT-RTX only if it is the only one."""
    if module_name is None:
        only_rtx = importlib.util.find_spec("tensorrt") is None and importlib.util.find_spec("tensorrt_rtx")
        module_name = "tensorrt_rtx" if only_rtx else "tensorrt"
    try:
        module = importlib.import_module(module_name)
        from polygraphy import config
        from polygraphy.logger import G_LOGGER
    except (ImportError, OSError) as error:  # OSError: one of its libraries is missing
        raise UsageError(
            f"This needs {NAMES[module_name]} (package {module_name}) and polygraphy. Received: {error}. "
            f"Run: {INSTALL[module_name]}"
        ) from error
    found = TensorRT(module, module_name, str(module.__version__))
    if not found.is_rtx and tuple(map(int, found.version.split(".")[:2])) < OLDEST:
        raise UsageError(
            f"TensorRT must be {'.'.join(map(str, OLDEST))} or newer. Received: {found.version}. "
            f"Run: {INSTALL['tensorrt']}"
        )
    if "polygraphy.backend.trt" in sys.modules and found.is_rtx != config.USE_TENSORRT_RTX:
        raise UsageError(
            "One process can use TensorRT or TensorRT-RTX, not both. Received: "
            f"{found}, after the other was loaded."
        )
    config.USE_TENSORRT_RTX = found.is_rtx  # as POLYGRAPHY_USE_TENSORRT_RTX=1
    G_LOGGER.colors = False
    G_LOGGER.use_python_logging_system = True  # stdout stays free for --json
    return found


def the_gpu() -> Gpu:
    """Return the GPU that CUDA uses."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise NoGpuError(
            f"Using a GPU needs the package cuda-python. Received: {error}. Run: {INSTALL['tensorrt']}"
        ) from error
    try:
        status, count = runtime.cudaGetDeviceCount()
        problem = status.name if int(status) else "no device"
    except Exception as error:  # the errors of its loader have no common class
        count, problem = 0, str(error)
    if not count:
        raise NoGpuError(
            f"This needs an NVIDIA GPU and its driver. Received: {problem}. Check that nvidia-smi shows the GPU and "
            "that CUDA_VISIBLE_DEVICES does not hide it."
        )
    facts = cuda_call(runtime.cudaGetDeviceProperties, cuda_call(runtime.cudaGetDevice))
    return Gpu(
        name=facts.name.decode().rstrip("\0"),
        compute_capability=f"{facts.major}.{facts.minor}",
        driver=next((gpu.driver for gpu in gpus()), None)
        or f"CUDA {cuda_call(runtime.cudaDriverGetVersion)}",
    )


def cuda_call(function: Any, *arguments: Any) -> Any:
    """Call CUDA and return its result without the status."""
    status, *results = function(*arguments)
    if int(status):
        raise DataError(
            f"CUDA failed in {function.__name__}: {status.name}. nvidia-smi shows whether the memory is full."
        )
    return results[0] if results else None


class TensorrtLog(logging.Handler):
    """Collect, as a context, the errors of TensorRT and the list of layers that a builder logs at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []  # one line each
        self.layers = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep errors and the list of layers."""
        text = record.getMessage()
        if record.levelno == logging.ERROR:
            self.errors.append(" ".join(text.removeprefix("[E] ").split()))
        elif record.levelno < logging.INFO and "LayerType: " in text:
            self.layers = text

    def reason(self) -> str:
        """Return the last errors as one line, each once: the first ones are their causes in detail."""
        return "; ".join(dict.fromkeys(self.errors[-LAST_ERRORS:])) or "no reason given"

    def __enter__(self) -> Self:
        from polygraphy.logger import G_LOGGER

        logger, self._end = logging.getLogger("Polygraphy"), ExitStack()
        self._end.enter_context(G_LOGGER.verbosity(G_LOGGER.EXTRA_VERBOSE))
        self._end.callback(setattr, logger, "propagate", logger.propagate)
        self._end.callback(logger.setLevel, logger.level)
        self._end.callback(logger.removeHandler, self)
        logger.setLevel(1)
        logger.propagate = False
        logger.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._end.close()


def load_engine(tensorrt: TensorRT, data: bytes, what: str) -> Any:
    """Load an engine, whose facts fit this machine, into the GPU."""
    from polygraphy.backend.trt import EngineFromBytes
    from polygraphy.exception import PolygraphyException

    with TensorrtLog() as log:
        try:
            return EngineFromBytes(data)()
        except PolygraphyException as error:
            raise DataError(f"{what} cannot be loaded by {tensorrt}: {log.reason()}.") from error
