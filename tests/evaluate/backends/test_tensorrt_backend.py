"""Running engines: on a GPU that is simulated, and the errors without one. No test here has run on a GPU."""

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from evaluate.backends import open_model, tensorrt_module
from evaluate.backends.engine_file import Batches
from evaluate.backends.tensorrt_backend import GRAPHS, TensorrtBackend
from evaluate.backends.tensorrt_module import GpuError, NoGpuError, find_tensorrt, the_gpu
from swav_tf.plumbing.errors import DataError, UsageError
from tests.evaluate.backends.engines import GPU, metadata, write
from tests.evaluate.backends.fake_gpu import FakeCuda, FakeEngine, fake_tensorrt


def use(monkeypatch, cuda, engine, gpu=GPU):
    """Puts them in the place of the packages."""
    module = fake_tensorrt(engine)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=cuda))
    monkeypatch.setattr("evaluate.backends.tensorrt_backend.the_gpu", lambda: gpu)
    monkeypatch.setattr(tensorrt_module, "_log", lambda name: tensorrt_module.Log(module))


@pytest.fixture
def cuda():
    return FakeCuda()


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


# Bugs caught: rows of the batch before, copies of a wrong size or in a wrong order, a graph that holds the first
# batch's images or outputs, a context that changes under a graph, batches beyond the profile or below it.
@pytest.mark.parametrize("inside", [True, False])
def test_outputs(tmp_path, monkeypatch, cuda, inside):
    sides, dtype = ((8, 8, 3), np.uint8) if inside else ((3, 8, 8), np.float32)
    engine = FakeEngine(cuda, dtype, sides, fewest=2, most=4)
    use(monkeypatch, cuda, engine)
    plan = write(tmp_path / "model.plan", about=metadata(inside=inside), profile=Batches(min=2, opt=2, max=4))
    runner = open_model(plan)
    assert (runner.input_view.crop, runner.feature_dim, runner.outputs) == (8, 3, ("scores", "features"))
    assert runner.facts.runner == "TensorRT 10.13.2.6 fp16"
    how = metadata(inside=inside).preprocessing
    for seed, count in enumerate([4, 3, 4, 1, 2, 9, 4, 3, 11]):
        batch = images(count, seed)
        values = batch.astype(np.float64)
        if not inside:
            values = (values / 255 - how.mean) / how.std
        found = runner.run(batch)
        np.testing.assert_allclose(found["features"], values.mean(axis=(1, 2)), rtol=1e-5)
        np.testing.assert_allclose(found["scores"][:, 0], values.reshape(count, -1).max(axis=1), rtol=1e-5)
    assert engine.contexts == 3  # of 4, 3 and 2 images
    before = len(cuda.calls)
    runner.run(images(4))
    assert cuda.calls[before:] == ["launch"]


# Bugs caught: a graph for every size that ever comes; sizes past the limit that share a context with a graph.
def test_graphs_are_few(tmp_path, monkeypatch, cuda):
    engine = FakeEngine(cuda, np.uint8, (8, 8, 3), fewest=1, most=8)
    use(monkeypatch, cuda, engine)
    runner = open_model(write(tmp_path / "model.plan", profile=Batches(min=1, opt=2, max=8)))
    for count in [1, 2, 3, 4, 5, 6, 7, 5, 1, 2, 3, 4, 6]:
        batch = images(count, count)
        np.testing.assert_allclose(
            runner.run(batch)["features"], batch.mean(axis=(1, 2), dtype=np.float64), rtol=1e-5
        )
    assert engine.contexts == GRAPHS + 1
    assert cuda.calls.count("launch") == 4


# Bugs caught: a time that is said to be of computing and has copies in it; one of a graph that computes nothing.
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_computing_in_the_gpus_memory(tmp_path, monkeypatch, cuda, cuda_graph):
    use(monkeypatch, cuda, FakeEngine(cuda, np.uint8, (8, 8, 3), fewest=2, most=4))
    plan = write(tmp_path / "model.plan", profile=Batches(min=2, opt=2, max=4))
    runner = TensorrtBackend(plan, cuda_graph=cuda_graph)
    batch = images(3)
    compute = runner.computation(batch)
    output = runner._buffers["features"]
    ctypes.memset(output.device, 0, 3 * 3 * 4)
    before = len(cuda.calls)
    compute()
    assert cuda.calls[before:] == ["launch" if cuda_graph else "execute"]
    found = np.ctypeslib.as_array((ctypes.c_float * 9).from_address(output.device)).reshape(3, 3)
    np.testing.assert_allclose(found, batch.mean(axis=(1, 2), dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(runner.run(batch)["features"], found)
    assert ("launch" in cuda.calls) == cuda_graph
    with pytest.raises(UsageError, match=r"of 2 to 4 images.*Received: 1"):
        runner.computation(images(1))


# Bug caught: results that the next batch overwrites.
def test_outputs_are_ones_own(tmp_path, monkeypatch, cuda):
    use(monkeypatch, cuda, FakeEngine(cuda, np.uint8, (8, 8, 3), fewest=1, most=4))
    runner = open_model(write(tmp_path / "model.plan"))
    first = runner.run(images(2))
    kept = first["features"].copy()
    runner.run(images(2, seed=1))
    np.testing.assert_array_equal(first["features"], kept)


# Bug caught: memory of the GPU that stays taken when a runner is gone.
def test_memory_is_given_back(tmp_path, monkeypatch, cuda):
    use(monkeypatch, cuda, FakeEngine(cuda, np.uint8, (8, 8, 3), fewest=1, most=4))
    runner = open_model(write(tmp_path / "model.plan"))
    runner.run(images(1))
    del runner
    assert sorted(cuda.freed) == sorted(cuda.held)


# Bugs caught: a traceback, or wrong numbers, where the GPU is full.
def test_a_full_gpu(tmp_path, monkeypatch):
    cuda = FakeCuda(memory=100)
    use(monkeypatch, cuda, FakeEngine(cuda, np.uint8, (8, 8, 3), fewest=1, most=4))
    with pytest.raises(GpuError, match="cudaMalloc: OUT_OF_MEMORY"):
        open_model(write(tmp_path / "model.plan"))


# Bug caught: an engine of another GPU that is given to TensorRT.
def test_an_engine_of_another_gpu_is_not_loaded(tmp_path, monkeypatch, cuda):
    use(monkeypatch, cuda, None, gpu=GPU.model_copy(update={"name": "NVIDIA L4"}))
    plan = write(tmp_path / "model.plan")
    with pytest.raises(UsageError, match=r"here is NVIDIA L4.*It was not run"):
        open_model(plan)
    use(monkeypatch, cuda, None)
    with pytest.raises(DataError, match=r"model.plan cannot be loaded by TensorRT 10.13.2.6"):
        open_model(plan)
    with pytest.raises(UsageError, match="apply to ONNX files only"):
        open_model(plan, provider="tensorrt")


# Bugs caught: a traceback without a package or a GPU, or one that does not say what to install.
def test_what_is_missing_is_told(tmp_path, monkeypatch, cuda):
    plan = write(tmp_path / "model.plan")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UsageError, match=r"needs TensorRT .*pip install 'swav-tf\[tensorrt\]'"):
        open_model(plan)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.11.0.33"))
    with pytest.raises(UsageError, match=r"10.12 or newer. Received: 10.11.0.33"):
        find_tensorrt("tensorrt")
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(NoGpuError, match=r"cuda-python.*pip install 'swav-tf\[tensorrt\]'"):
        the_gpu()
    none = SimpleNamespace(cudaGetDeviceCount=lambda: (_Status(100), None))
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=none))
    with pytest.raises(NoGpuError, match=r"NVIDIA GPU and its driver. Received: cudaErrorNoDevice"):
        the_gpu()


class _Status(int):
    name = "cudaErrorNoDevice"


# Bug caught: facts of another GPU than the one CUDA uses.
def test_the_gpu_tells_what_it_is(monkeypatch):
    facts = {3: SimpleNamespace(name=b"NVIDIA L4\0\0", major=8, minor=9)}
    runtime = SimpleNamespace(
        cudaGetDeviceCount=lambda: (0, 4),
        cudaGetDevice=lambda: (0, 3),
        cudaGetDeviceProperties=lambda device: (0, facts[device]),
        cudaDriverGetVersion=lambda: (0, 12080),
    )
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(tensorrt_module, "_driver", lambda: "570.10")
    assert str(the_gpu()) == "NVIDIA L4 (compute capability 8.9, driver 570.10)"
    monkeypatch.setattr(tensorrt_module, "_driver", lambda: None)
    assert the_gpu().driver == "CUDA 12080"
