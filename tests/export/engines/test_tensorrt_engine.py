"""What is asked for and cannot be had is told before anything is built."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest

from evaluate.backends.engine_file import Batches, BuilderOptions
from evaluate.backends.tensorrt_module import NoGpuError
from export.engine import build_engine
from swav_tf.plumbing.errors import UsageError

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.usefixtures("no_gpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": BuilderOptions(version_compatible=True)}, "has not: --version-compatible"),
        ({"options": BuilderOptions(hardware_compatible=True)}, "every engine of TensorRT-RTX is"),
        ({"options": BuilderOptions(refittable=True)}, "--refittable and --refit need a GPU"),
        ({"timing_cache": "x"}, "has not: --timing-cache"),
        ({"profile": Batches(min=4, opt=2, max=8)}, "in this order. Received: 4,2,8"),
        ({"options": BuilderOptions(builder_level=6)}, "0 to 5. Received: 6"),
        ({"options": BuilderOptions(workspace_gib=0)}, "greater than 0. Received: 0"),
        ({"refit": "old.plan", "profile": Batches(min=1, opt=1, max=1)}, "options of a builder"),
    ],
)
def test_options_that_cannot_be_honoured(everything, engine_settings, changes, message):
    with pytest.raises(UsageError, match=message):
        build_engine(everything / "model-fp16.onnx", dataclasses.replace(engine_settings, **changes))


def test_tensorrt_without_a_gpu(everything, engine_settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.16.0.1"))
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(
        NoGpuError,
        match=r"on the GPU that will run it.*pip install 'swav-tf\[tensorrt\]'.*--tensorrt rtx",
    ):
        build_engine(
            everything / "model-fp16.onnx",
            dataclasses.replace(engine_settings, module_name="tensorrt"),
        )
    assert not engine_settings.cache.exists()
