import numpy as np
import pytest

from evaluate.backends.onnx_backend import (
    OnnxBackend,
    engine_cache,
    missing_provider,
    open_session,
    provider_settings,
)
from swav_tf.plumbing.errors import DataError, UsageError
from tests.evaluate.exported import write_onnx


# Bug caught: an engine of other weights from ONNX Runtime's cache, whose key leaves them out.
def test_the_engine_cache_depends_on_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, prefixes = tmp_path / "model.onnx", set()
    for weights, precision in (("a", "fp32"), ("b", "fp32"), ("a", "fp16"), ("a", "int8")):
        write_onnx(path, precision, weights=weights * 64)
        settings = provider_settings(path, provider="tensorrt", cuda_graph=True)
        prefixes.add(settings["trt_engine_cache_prefix"])
        flags = (settings["trt_fp16_enable"], settings["trt_int8_enable"])
        assert flags == ("1" if precision == "fp16" else "0", "1" if precision == "int8" else "0")
        assert settings["trt_cuda_graph_enable"] == settings["trt_engine_cache_enable"] == "1"
        assert settings["trt_engine_cache_path"] == str(engine_cache())
    assert engine_cache() == tmp_path / "cache" / "swav-tf" / "tensorrt"
    assert len(prefixes) == 4


# Bug caught: another processor, silently.
def test_a_missing_provider_is_an_error(tmp_path):
    write_onnx(tmp_path / "model.onnx", "fp32", weights="a" * 64)
    assert missing_provider("cpu") is None
    with pytest.raises(UsageError, match="--provider cuda needs"):
        open_session(tmp_path / "model.onnx", provider="cuda")
    with pytest.raises(UsageError, match="must be one of"):
        missing_provider("rocm")
    with pytest.raises(DataError, match=r"gone\.onnx"):
        open_session(tmp_path / "gone.onnx")


# Bug caught: a service whose model takes the cores from the threads that decode.
@pytest.mark.parametrize("spin", [True, False])
def test_threads_spin_only_if_they_may(tmp_path, spin):
    write_onnx(tmp_path / "model.onnx", "fp32", weights="a" * 64)
    options = open_session(tmp_path / "model.onnx", spin=spin).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spin))


# Bugs caught: outputs of the previous images, or of the wrong shape.
def test_bound_runs_compute_their_images(tmp_path):
    write_onnx(tmp_path / "model.onnx", "fp32", weights="a" * 64)
    model = OnnxBackend(tmp_path / "model.onnx")
    first, second = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), dtype=np.uint8)
    bound = model.bound(first)
    for images in (second, first, second):
        np.testing.assert_array_equal(bound.run_from_host(images)["features"], model.features(images))
    assert model.metadata.preprocessing.input_shape(5) == first.shape


# Bugs caught: outputs in another order, or those of a later batch; metadata that are lost; another number of channels.
def test_openvino_computes_what_onnx_runtime_does(tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "model.onnx"
    write_onnx(path, "fp32", weights="a" * 64)
    one, other = (OnnxBackend(path, provider=provider, threads=1) for provider in ("cpu", "openvino"))
    assert (other.metadata, other.outputs, other.feature_dim) == (one.metadata, one.outputs, one.feature_dim)
    first, second = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), dtype=np.uint8)
    found, again = other.run(first), other.run(second[:3])
    for images, outputs in ((first, found), (second[:3], again)):
        for name, expected in one.run(images).items():
            error = np.linalg.norm(outputs[name] - expected) / np.linalg.norm(expected)
            assert error < (0.02 if other.gate == "bf16" else 1e-5), name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"model\.onnx"):
        open_session(path, provider="openvino")
