"""Facts about this machine for `-c auto`."""

import sys
from types import SimpleNamespace

import pytest

from swav_tf.data.survey import this_machine, visible_gpus


# Bug caught: all GPUs of a machine of which a job has some.
@pytest.mark.parametrize(
    ("visible", "names"), [(None, ["0", "1", "2"]), ("2", ["2"]), ("GPU-5,GPU-7", ["GPU-5", "GPU-7"]), ("-1", [])]
)  # fmt: skip
def test_the_gpus_of_a_job(monkeypatch, visible, names):
    nvml = SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=16e9),
        nvmlDeviceGetCudaComputeCapability=lambda handle: (9, 0),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert this_machine().gpus == len(names)
    assert visible_gpus() == names
