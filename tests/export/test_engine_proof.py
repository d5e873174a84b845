"""The precision of engines, from what TensorRT says of them."""

import json

import pytest

from export.engine import from_inspector, from_listing, prove
from export.staging import ExportError

# As TensorRT 10 documents its inspector: types in words, weights with a type of their own.
CASK = {
    "Name": "stem/conv + stem/relu",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "images", "Dimensions": [8, 3, 224, 224], "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
    "Outputs": [{"Name": "x", "Dimensions": [8, 64, 112, 112], "Format/Datatype": "Row major linear FP32"}],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Int8", "Count": 9408},
    "Bias": {"Type": "Float", "Count": 64},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32",
    "Metadata": "[ONNX Layer: stem/conv]\x1e[ONNX Layer: stem/relu]",
}  # fmt: skip
# As its compiler writes layers: constants as tensors, the type under a key of its own.
COMPILED = {
    "Name": "block/conv_myl0_2",
    "LayerType": "correlation",
    "Inputs": [{"Name": "x", "Dimensions": [-1, 64, 8, 8], "Datatype": "Half", "Format": "(NHWC) Channel major format"}],
    "Constants": [
        {"Name": "alpha", "Dimensions": [1], "Datatype": "Float", "Format": "(Linear)"},
        {"Name": "weights", "Dimensions": [64, 64, 3, 3], "Datatype": "Half", "Format": "(NHWC)"},
        {"Name": "bias", "Dimensions": [1, 64, 1, 1], "Datatype": "Float", "Format": "(NHWC)"},
    ],
    "Outputs": [{"Name": "y", "Dimensions": [-1, 64, 8, 8], "Datatype": "Half", "Format": "(NHWC)"}],
    "Metadata": "[ONNX Layer: block/conv]",
}  # fmt: skip
COPY = {
    "Name": "copy",
    "LayerType": "Reformat",
    "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
    "Outputs": [{"Name": "y", "Format/Datatype": "Channel major FP16 format"}],
    "Metadata": "[ONNX Layer: stem/conv]",
}


def proof(layers, convolutions):
    listed = from_inspector(json.dumps({"Layers": layers, "Bindings": []}))
    return prove(listed, convolutions, source="engine inspector", builder="TensorRT 10")


def test_both_forms_of_the_inspector():
    found = proof([COPY, CASK, COMPILED], {"stem/conv": "int8", "block/conv": "fp16"})
    assert found.convolutions == {"Int8": 1, "Half": 1}


# Bugs caught: a verdict from the output, the bias, a copy beside it or the name of the file; weights in half precision
# for arithmetic in float; a convolution that no layer names and is passed over; an engine without convolutions.
@pytest.mark.parametrize(
    ("layers", "convolutions", "message"),
    [
        ([CASK], {"stem/conv": "fp16"}, r"1 of 1 otherwise: stem/conv is Int8, not Half"),
        ([COMPILED], {"block/conv": "fp32"}, r"block/conv is Half, not Float"),
        (
            [CASK, COMPILED],
            {"stem/conv": "int8", "block/conv": "int8"},
            r"1 of 2 otherwise: block/conv is Half",
        ),
        ([{**CASK, "Weights": {"Type": "Half"}}], {"stem/conv": "int8"}, r"Half and Int8, not Int8"),
        (
            [{**COMPILED, "Inputs": [{"Datatype": "Float"}]}],
            {"block/conv": "fp16"},
            r"Float and Half, not Half",
        ),
        ([COPY], {"stem/conv": "fp32"}, r"stem/conv is not listed, not Float"),
        ([COMPILED], {"block/con": "fp16"}, r"block/con is not listed"),
        ([COMPILED], {}, r"0 of 0 otherwise"),
    ],
)
def test_other_precisions_are_refused(layers, convolutions, message):
    with pytest.raises(ExportError, match=message):
        proof(layers, convolutions)


# Bug caught: an engine whose layers tell nothing, taken for a proven one.
def test_names_alone_prove_nothing():
    with pytest.raises(ExportError, match="detailed profiling verbosity"):
        proof(["stem/conv + stem/relu"], {"stem/conv": "fp16"})
    assert from_listing("Layers:\nstem/conv + stem/relu\n") == []
