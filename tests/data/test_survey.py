"""Facts about this machine for `-c auto`."""

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
