"""Run engines from `swav-tf export --to tensorrt` with TensorRT and CUDA graphs.

Written from the documentation of TensorRT 10.12 to 11 and CUDA; not yet run on a GPU; see docs/tensorrt.md.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from evaluate.backends.backend import Backend
from evaluate.backends.engine_file import check_fits, read_engine
from evaluate.backends.tensorrt_module import cuda_call, find_tensorrt, load_engine, the_gpu
from swav_tf.plumbing.errors import DataError, UsageError

GRAPHS: Final = 4  # batch sizes that are kept ready, each with an execution context of its own


class TensorrtBackend(Backend):
    """An engine on a GPU.

    Images and outputs are copied through page-locked memory. All work of a batch is recorded as a CUDA graph
    for each batch size (`cuda_graph`); TensorRT-RTX, which compiles while it runs, gets none.
    """

    def __init__(self, path: Path, *, cuda_graph: bool = True) -> None:
        data, self.built = read_engine(path)
        self.metadata = self.built.metadata(path)
        self._tensorrt = find_tensorrt(self.built.module)
        check_fits(path, self.built, self._tensorrt, the_gpu())
        self._engine = load_engine(self._tensorrt, data, str(path))
        self.cuda_graph = cuda_graph and not self._tensorrt.is_rtx
        self.input_view = self.metadata.preprocessing.view
        self.data, self.gate = self.metadata.data, self.metadata.precision
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        self.outputs = tuple(name for name in names if name != "images")
        if "images" not in names or "features" not in names:
            raise DataError(f"{path} must read `images` and return `features`. Received: {', '.join(names)}.")
        self.feature_dim = int(tuple(self._engine.get_tensor_shape("features"))[1])
        self.facts = self.metadata.identity(path, str(self._tensorrt), self.built.plan_sha256)
        self._reserve(names)

    def _reserve(self, names: list[str]) -> None:
        """Reserve memory for the largest batch, and a stream."""
        from cuda.bindings import runtime

        self._cuda = runtime
        self._stream = cuda_call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking)
        self._buffers: dict[str, _Buffer] = {}
        self._ready: dict[int, Callable[[], None]] = {}  # by batch size, the oldest first
        weakref.finalize(self, runtime.cudaStreamDestroy, self._stream)
        for name in names:
            sides = tuple(self._engine.get_tensor_shape(name))[1:]
            crop = self.input_view.crop
            shape = (self.built.profile.max, *(crop if side == -1 else side for side in sides))
            dtype = self._tensorrt.module.nptype(self._engine.get_tensor_dtype(name))
            self._buffers[name] = _Buffer(shape, np.dtype(dtype), runtime)

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute a batch; one beyond the profile is split."""
        most = self.built.profile.max
        parts = [self._run_part(images[start : start + most]) for start in range(0, len(images), most)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def _run_part(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute a batch of at most the profile's largest size; fill one below its smallest with zeros."""
        count = len(images)
        size = max(count, self.built.profile.min)
        host = self._buffers["images"].host
        host[:count] = self.metadata.preprocessing.apply(images)
        host[count:size] = 0
        if size not in self._ready:
            if len(self._ready) == GRAPHS:
                self._synchronize()
                del self._ready[next(iter(self._ready))]
            self._ready[size] = self._prepare(size, copies=True)
        self._ready[size]()
        self._synchronize()
        return {name: self._buffers[name].host[:count].copy() for name in self.outputs}

    def computation(self, images: np.ndarray) -> Callable[[], None]:
        """Return a call that computes these images in the GPU's memory, without copies, and waits.

        Run nothing else on this object while the call is in use: it would change the images.
        """
        self.check(images)
        profile, size = self.built.profile, len(images)
        if not profile.min <= size <= profile.max:
            raise UsageError(
                f"Batches must be of {profile.min} to {profile.max} images, as {self.facts.path} was built. "
                f"Received: {size}."
            )
        self._buffers["images"].host[:size] = self.metadata.preprocessing.apply(images)
        self._buffers["images"].copy(size, self._stream, to_gpu=True)
        start = self._prepare(size, copies=False)

        def compute() -> None:
            start()
            self._synchronize()

        return compute

    def _prepare(self, size: int, *, copies: bool) -> Callable[[], None]:
        """Return a call that queues the work of a batch, as a CUDA graph if there are graphs."""
        context = self._engine.create_execution_context()
        if context is None:
            raise DataError(
                f"{self.facts.path} needs more memory than the GPU has free. Free some, or build it for smaller "
                "batches (--batch)."
            )
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.device)
        context.set_input_shape("images", (size, *self._buffers["images"].host.shape[1:]))

        def work() -> None:
            if copies:
                self._buffers["images"].copy(size, self._stream, to_gpu=True)
            if not context.execute_async_v3(int(self._stream)):
                raise DataError(
                    f"{self._tensorrt} could not run {self.facts.path} on {size} images; it logged the reason."
                )
            for name in self.outputs if copies else ():
                self._buffers[name].copy(size, self._stream, to_gpu=False)

        if not self.cuda_graph:
            return work
        work()  # TensorRT defers some work to the first run, which a graph cannot contain
        self._synchronize()
        return _Graph(work, self._stream, self._cuda).launch

    def _synchronize(self) -> None:
        cuda_call(self._cuda.cudaStreamSynchronize, self._stream)


class _Buffer:
    """A tensor on the GPU (address `device`) and page-locked memory of the same size (array `host`)."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], runtime: Any) -> None:
        self._runtime = runtime
        size = int(np.prod(shape)) * dtype.itemsize
        self.device = int(cuda_call(runtime.cudaMalloc, size))
        weakref.finalize(self, runtime.cudaFree, self.device)
        self._host = int(cuda_call(runtime.cudaMallocHost, size))
        weakref.finalize(self, runtime.cudaFreeHost, self._host)
        memory = (ctypes.c_uint8 * size).from_address(self._host)
        self.host: np.ndarray = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def copy(self, count: int, stream: Any, *, to_gpu: bool) -> None:
        """Queue the copy of the first `count` rows."""
        kinds = self._runtime.cudaMemcpyKind
        kind = kinds.cudaMemcpyHostToDevice if to_gpu else kinds.cudaMemcpyDeviceToHost
        target, source = (self.device, self._host) if to_gpu else (self._host, self.device)
        cuda_call(self._runtime.cudaMemcpyAsync, target, source, self.host[:count].nbytes, kind, stream)


class _Graph:
    """Work that is recorded once and started by a single call; `record` queues it on the stream."""

    def __init__(self, record: Callable[[], None], stream: Any, runtime: Any) -> None:
        self._record = record  # it keeps the context alive
        self._runtime, self._stream = runtime, stream
        # Thread-local: what other threads do with the GPU meanwhile is allowed.
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda_call(runtime.cudaStreamBeginCapture, stream, mode)
        try:
            record()
        finally:  # otherwise the stream would stay in recording
            graph = cuda_call(runtime.cudaStreamEndCapture, stream)
        self._started = cuda_call(runtime.cudaGraphInstantiate, graph, 0)
        cuda_call(runtime.cudaGraphDestroy, graph)
        weakref.finalize(self, runtime.cudaGraphExecDestroy, self._started)

    def launch(self) -> None:
        """Queue the work."""
        cuda_call(self._runtime.cudaGraphLaunch, self._started, self._stream)
