"""Those that our exports are measured beside."""

import numpy as np
import pytest

from evaluate.benchmark.torch_peer import network_of
from evaluate.benchmark.trtexec import compute_times
from swav_tf.plumbing.errors import DataError


# Bug caught: a peer of another network: uneven padding, weights, normalisation.
def test_pytorch_computes_the_same_features(exported) -> None:
    torch = pytest.importorskip("torch")
    from evaluate.backends.onnx_backend import OnnxBackend

    images = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    wanted = OnnxBackend(exported / "model-fp32.onnx").run(images)["features"]
    with torch.inference_mode():
        found = network_of(exported / "model-fp32.onnx")(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_times_of_trtexec() -> None:
    assert compute_times([{"computeMs": 1.5, "latencyMs": 9}, {"computeMs": 2}]) == [1.5, 2.0]
    with pytest.raises(DataError):
        compute_times([{"latencyMs": 9}])
