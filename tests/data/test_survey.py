"""Facts about this machine for `-c auto`."""

import sys

import pytest

from swav_tf.data.survey import this_machine
from swav_tf.plumbing.nvidia import visible_gpus


# Bug caught: all GPUs of a machine of which a job has some.
@pytest.mark.parametrize(
    ("visible", "names"), [(None, ["0", "1", "2", "3"]), ("2", ["2"]), ("GPU-5,GPU-7", ["GPU-5", "GPU-7"]), ("-1", [])]
)  # fmt: skip
def test_the_gpus_of_a_job(nvml, monkeypatch, visible, names):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert this_machine().gpus == len(names)
    assert visible_gpus() == names


# Bug caught: a GPU that shares the machine's memory, of which its driver reports none, as an error.
def test_a_gpu_without_a_figure(nvml, monkeypatch, logged):
    def unsupported(*arguments):
        raise OSError

    monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetMemoryInfo", unsupported)
    assert (this_machine().gpus, this_machine().gpu_gb) == (4, 16)
    assert "assuming 16 GB" in logged[0][1]
