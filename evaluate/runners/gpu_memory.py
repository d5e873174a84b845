"""Memory, streams and graphs of the GPU, by cuda-python: the few calls that running an engine takes."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from swav_tf.errors import SwavError


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
