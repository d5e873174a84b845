"""What tests of engines share."""

import json

import onnx

from evaluate.backends.onnx_metadata import KEY
from evaluate.backends.tensorrt_module import Gpu

GPU = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="570.10")


def edit(source, target, change):
    """A changed copy of a model."""
    model = onnx.load(source)
    change(model)
    target.write_bytes(model.SerializeToString())
    return target


def called(precision, **facts):
    """Says in a model's metadata that it is of this precision."""

    def change(model):
        [entry] = [entry for entry in model.metadata_props if entry.key == KEY]
        entry.value = json.dumps({**json.loads(entry.value), "precision": precision, **facts})

    return change
