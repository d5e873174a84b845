"""Timings of kernels in a file."""

from types import SimpleNamespace

import pytest

from evaluate.backends.tensorrt_module import find_tensorrt, fresh_log
from export.engine_build import read_timing_cache, write_timing_cache
from swav_tf.plumbing.errors import DataError

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.usefixtures("no_gpu")


# Bugs caught: a timing cache that is never written, or one of another GPU that is used.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT-RTX has the calls, and needs none
def test_timing_cache(tmp_path):
    import tensorrt_rtx

    log = fresh_log(find_tensorrt("tensorrt_rtx"))
    config = tensorrt_rtx.Builder(log.logger).create_builder_config()
    path = tmp_path / "deep" / "timings"
    read_timing_cache(config, path)
    write_timing_cache(config, path)
    assert path.stat().st_size > 0
    read_timing_cache(config, path)
    foreign = SimpleNamespace(
        create_timing_cache=lambda data: data, set_timing_cache=lambda cache, ignore_mismatch: ignore_mismatch
    )
    with pytest.raises(DataError, match="of another or damaged"):
        read_timing_cache(foreign, path)
