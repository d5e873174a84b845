"""A GPU of this process's own memory, with as much of cuda-python and TensorRT as running an engine takes.

Addresses are real, copies copy, work in a graph waits for its launch: what is read or written at a wrong place, in
a wrong order or of a wrong size gives wrong numbers, as on a GPU.
"""

# ruff: noqa: N802, N815
# The names are CUDA's.

import ctypes
import enum
from types import SimpleNamespace

import numpy as np


class Status(enum.IntEnum):
    SUCCESS = 0
    OUT_OF_MEMORY = 2


class FakeCuda:
    """`cuda.bindings.runtime`."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *, memory=2**30):
        self.memory, self.held = memory, {}
        self.recording, self.calls, self.freed = None, [], []

    def cudaMalloc(self, size):
        if sum(map(len, self.held.values())) + size > self.memory:
            return Status.OUT_OF_MEMORY, None
        block = (ctypes.c_uint8 * size)(*[205] * size)  # what was there before
        self.held[ctypes.addressof(block)] = block
        return Status.SUCCESS, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address):
        self.freed.append(address)
        return (Status.SUCCESS,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        return self.queue("copy", lambda: ctypes.memmove(target, source, size))

    def cudaStreamCreateWithFlags(self, flags):
        return Status.SUCCESS, 77

    def cudaStreamDestroy(self, stream):
        return (Status.SUCCESS,)

    def cudaStreamSynchronize(self, stream):
        assert self.recording is None, "waiting for a stream that records"
        return (Status.SUCCESS,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (Status.SUCCESS,)

    def cudaStreamEndCapture(self, stream):
        recorded, self.recording = self.recording, None
        return Status.SUCCESS, recorded

    def cudaGraphInstantiate(self, graph, flags):
        return Status.SUCCESS, graph

    def cudaGraphDestroy(self, graph):
        return (Status.SUCCESS,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph, stream):
        self.calls.append("launch")
        for work in graph:
            work()
        return (Status.SUCCESS,)

    def queue(self, name, work):
        if self.recording is not None:
            self.recording.append(work)
        else:
            self.calls.append(name)
            work()
        return (Status.SUCCESS,)


class FakeContext:
    def __init__(self, engine):
        self.engine, self.shape, self.addresses = engine, (-1, *engine.sides), {}

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def get_tensor_shape(self, name):
        return self.shape

    def set_input_shape(self, name, shape):
        assert self.engine.cuda.recording is None, "a shape changes while a graph is recorded"
        self.shape = shape
        return self.engine.fewest <= shape[0] <= self.engine.most

    def execute_async_v3(self, stream):
        assert stream == 77
        shape, addresses = self.shape, dict(self.addresses)

        def work():
            assert self.shape == shape, "a context has changed under the graph that was recorded with it"
            images = np.ctypeslib.as_array(
                (ctypes.c_uint8 * (int(np.prod(shape)) * self.engine.item)).from_address(addresses["images"])
            )
            values = images.view(self.engine.dtype).reshape(shape).astype(np.float64)
            # Mean of each channel, and of all pixels: wrong rows, places or types give other numbers.
            axes = (1, 2) if shape[-1] == 3 else (2, 3)
            features = values.mean(axis=axes).astype(np.float32)
            scores = values.reshape(shape[0], -1).max(axis=1, keepdims=True).astype(np.float32)
            for name, found in (("features", features), ("scores", scores)):
                ctypes.memmove(addresses[name], np.ascontiguousarray(found).ctypes.data, found.nbytes)

        self.engine.cuda.queue("execute", work)
        return True


class FakeEngine:
    num_io_tensors = 3

    def __init__(self, cuda, dtype, sides, fewest, most):
        self.cuda, self.dtype, self.item = cuda, dtype, np.dtype(dtype).itemsize
        self.sides, self.fewest, self.most, self.contexts = sides, fewest, most, 0

    def get_tensor_name(self, place):
        return ["scores", "images", "features"][place]

    def get_tensor_mode(self, name):
        return "input" if name == "images" else "output"

    def get_tensor_shape(self, name):
        return {"images": (-1, *self.sides), "features": (-1, 3), "scores": (-1, 1)}[name]

    def get_tensor_dtype(self, name):
        return self.dtype if name == "images" else np.float32

    def create_execution_context(self):
        self.contexts += 1
        return FakeContext(self)


def fake_tensorrt(engine):
    """The module `tensorrt`, whose runtimes give this engine."""

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)

    return SimpleNamespace(
        __name__="tensorrt",
        __version__="10.13.2.6",
        ILogger=ILogger,
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda data: engine),
        nptype=lambda dtype: dtype,
    )
