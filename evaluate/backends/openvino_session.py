"""ONNX files by OpenVINO on the CPU, behind the part of ONNX Runtime's session that `OnnxBackend` uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.system import available_cores

TYPES: Final = {
    "u8": "tensor(uint8)",
    "f32": "tensor(float)",
    "f16": "tensor(float16)",
}  # ONNX Runtime's names


class OpenVinoSession:
    """A file that OpenVINO has compiled, in bfloat16 where the CPU has instructions for it.

    Attributes:
        bfloat16: whether layers in float32 are computed in bfloat16, at twice the speed and a relative error of some
            thousandths.

    Raises:
        DataError: OpenVINO cannot read or compile the file.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        import openvino

        core = openvino.Core()
        self.bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        try:
            self._model = core.read_model(path)
            compiled = core.compile_model(
                self._model,
                "CPU",
                {
                    "INFERENCE_NUM_THREADS": threads or available_cores(),
                    "INFERENCE_PRECISION_HINT": "bf16" if self.bfloat16 else "f32",
                },
            )
        except RuntimeError as error:
            raise DataError(f"{path} cannot run in OpenVINO {openvino.__version__}: {error}") from error
        self._request = compiled.create_infer_request()

    def get_inputs(self) -> list[Any]:
        """Return name, shape and type of each input, as ONNX Runtime does."""
        return [_described(port) for port in self._model.inputs]

    def get_outputs(self) -> list[Any]:
        """Return name, shape and type of each output."""
        return [_described(port) for port in self._model.outputs]

    def run(self, names: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the outputs of these names."""
        outputs = self._request.infer(dict(inputs))
        by_name = {port.get_any_name(): value for port, value in outputs.items()}
        return [np.array(by_name[name]) for name in names]  # copies: the request reuses its memory


def _described(port: Any) -> Any:
    shape = [d.get_length() if d.is_static else None for d in port.get_partial_shape()]
    kind = port.get_element_type().get_type_name()
    return SimpleNamespace(name=port.get_any_name(), shape=shape, type=TYPES.get(kind, kind))
