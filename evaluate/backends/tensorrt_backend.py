"""An engine by `swav-tf export --to tensorrt`, run by TensorRT itself, without ONNX Runtime.

Written against the documented interface of TensorRT 10.12 to 11; see docs/tensorrt.md for what has been run where.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from evaluate.backends.backend import Backend
from evaluate.backends.engine_file import check_fits, read_engine
from evaluate.backends.tensorrt_module import (
    Buffer,
    GpuError,
    Graph,
    call,
    find_tensorrt,
    fresh_log,
    load_engine,
    the_gpu,
)
from swav_tf.plumbing.errors import DataError, UsageError

GRAPHS: Final = 4  # batch sizes with a CUDA graph, each with an execution context of its own
OTHER_SIZES: Final = 0  # all others share one


class TensorrtBackend(Backend):
    """An engine by `swav-tf export --to tensorrt`.

    Images go through page-locked memory. For the first batch sizes that come, all work of a batch is recorded
    as a CUDA graph and started by one call; TensorRT-RTX, which compiles while it runs, gets none.

    Args:
        path: the `.plan`, its sidecar beside it.
        cuda_graph: record graphs.

    Attributes:
        cuda_graph: whether graphs are recorded.

    Raises:
        UsageError: TensorRT or the GPU is missing, or the engine is for another.
        DataError: the engine or its sidecar is damaged.
    """

    def __init__(self, path: Path, *, cuda_graph: bool = True) -> None:
        data, self.built = read_engine(path)
        self.metadata = self.built.metadata(path)
        tensorrt = find_tensorrt(self.built.module)
        check_fits(path, self.built, tensorrt, the_gpu())
        self._tensorrt = tensorrt
        self.cuda_graph = cuda_graph and not tensorrt.is_rtx
        self._runtime, self._engine = load_engine(
            tensorrt,
            data,
            version_compatible=self.built.options.version_compatible,
            what=str(path),
        )
        self.input_view = self.metadata.preprocessing.view
        self.data = self.metadata.data
        self.outputs = tuple(self._names(tensorrt.module.TensorIOMode.OUTPUT))
        if "features" not in self.outputs or self._names(tensorrt.module.TensorIOMode.INPUT) != ["images"]:
            raise DataError(
                f"{path} must read `images` and give `features`. It gives: {', '.join(self.outputs)}."
            )
        self.feature_dim = int(tuple(self._engine.get_tensor_shape("features"))[1])
        self.facts = self.metadata.identity(path, str(tensorrt), self.built.plan_sha256)
        self._reserve()

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute a batch; one beyond the profile is split."""
        most = self.built.profile.max
        parts = [self._run_part(images[start : start + most]) for start in range(0, len(images), most)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def computation(self, images: np.ndarray) -> Callable[[], None]:
        """A call that computes these images again and again in the GPU's memory, and waits until it is done.

        Until it is dropped the runner must run nothing else: the images would be others.

        Args:
            images: see `run`, no more than the profile has and no fewer.
        """
        self.check(images)
        profile, size = self.built.profile, len(images)
        if not profile.min <= size <= profile.max:
            raise UsageError(
                f"Batches must be of {profile.min} to {profile.max} images, as {self.facts.path} was built. "
                f"Received: {size}."
            )
        self._buffers["images"].host[:size] = self.metadata.preprocessing.apply(images)
        self._buffers["images"].send(size, self._stream)
        context = self._new_context(size)

        def once() -> None:
            self._execute(context, size)

        once()
        call(self._cuda.cudaStreamSynchronize, self._stream)
        graph = Graph(once, self._stream, self._cuda) if self.cuda_graph else None

        def compute() -> None:
            if graph is None:
                once()
            else:
                graph.start(self._stream)
            call(self._cuda.cudaStreamSynchronize, self._stream)

        return compute

    # === The GPU ===

    def _reserve(self) -> None:
        """Buffers for the largest batch, and a stream."""
        from cuda.bindings import runtime

        self._cuda = runtime
        trt, most, crop = self._tensorrt.module, self.built.profile.max, self.input_view.crop
        self._buffers: dict[str, Buffer] = {}
        self._contexts: dict[int, Any] = {}  # by batch size, or OTHER_SIZES
        self._graphs: dict[int, Graph] = {}
        self._stream = call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking)
        weakref.finalize(self, _free, runtime, self._stream, self._buffers, self._graphs)
        for name in ["images", *self.outputs]:
            sides = tuple(self._engine.get_tensor_shape(name))[1:]
            shape = (most, *(crop if side == -1 else side for side in sides))  # -1: of any size
            self._buffers[name] = Buffer(shape, trt.nptype(self._engine.get_tensor_dtype(name)), runtime)

    def _run_part(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """One batch of at most the profile's greatest; one below its least is filled up."""
        count = len(images)
        size = max(count, self.built.profile.min)
        filled = self._buffers["images"].host
        filled[:count] = self.metadata.preprocessing.apply(images)
        filled[count:size] = 0
        if size in self._graphs:
            self._graphs[size].start(self._stream)
        else:
            self._queue(size)
            if len(self._graphs) < GRAPHS and self.cuda_graph:
                # The run above has done what TensorRT puts off to the first one, which no graph may hold.
                call(self._cuda.cudaStreamSynchronize, self._stream)
                self._graphs[size] = Graph(lambda: self._queue(size), self._stream, self._cuda)
        call(self._cuda.cudaStreamSynchronize, self._stream)
        return {name: self._buffers[name].host[:count].copy() for name in self.outputs}

    def _queue(self, size: int) -> None:
        """All of a batch's work: to the GPU, through the engine, back."""
        self._buffers["images"].send(size, self._stream)
        self._execute(self._context(size), size)
        for name in self.outputs:
            self._buffers[name].fetch(size, self._stream)

    def _execute(self, context: Any, size: int) -> None:
        log = fresh_log(self._tensorrt)
        if not context.execute_async_v3(int(self._stream)):
            raise GpuError(
                f"{self._tensorrt} could not run {self.facts.path} on {size} images: {log.told()}."
            )

    def _context(self, size: int) -> Any:
        """An execution context set to a batch size. A graph holds on to its context, which must not change."""
        key = size if size in self._contexts or len(self._contexts) < GRAPHS else OTHER_SIZES
        if key not in self._contexts:
            self._contexts[key] = self._new_context(size)
        context = self._contexts[key]
        if next(iter(context.get_tensor_shape("images"))) != size:
            self._set_size(context, size)
        return context

    def _new_context(self, size: int) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise GpuError(
                f"{self.facts.path} needs more memory than the GPU has free. Make some, or build it for smaller "
                "batches (--batch)."
            )
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.device)
        self._set_size(context, size)
        return context

    def _set_size(self, context: Any, size: int) -> None:
        shape = (size, *self._buffers["images"].host.shape[1:])
        if not context.set_input_shape("images", shape):
            raise GpuError(f"{self.facts.path} does not take images of {shape}.")

    def _names(self, mode: Any) -> list[str]:
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        return [name for name in names if self._engine.get_tensor_mode(name) == mode]


def _free(runtime: Any, stream: Any, buffers: dict[str, Buffer], graphs: dict[int, Graph]) -> None:
    for graph in graphs.values():
        graph.free()
    for buffer in buffers.values():
        buffer.free()
    runtime.cudaStreamDestroy(stream)
