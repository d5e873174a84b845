"""The network of an exported file in PyTorch: what a user would otherwise run, beside ours in one benchmark.

It is built from the file's own graph, so that it computes the same features with the same weights, batch
normalisation folded into the convolutions: a favour to PyTorch, which would not do it by itself.
"""

from __future__ import annotations

import importlib
import io
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.backends.onnx_backend import OnnxBackend, open_session
from evaluate.benchmark.target import Target, random_images
from swav_tf.plumbing.errors import UsageError

if TYPE_CHECKING:
    import onnx

OPSET = 17


def open_peer(runner: str, path: Path, *, batch: int, threads: int) -> Target:
    """The network by a runner of PyTorch's kind, for one size of batch.

    Args:
        runner: torch-cpu, torch-compile-cpu, torch-cuda, torch-compile-cuda or ort-torch-cpu.
        path: a float32 file of `swav-tf export`.
        batch: images in a call.
        threads: that compute a batch on a CPU; 0: one per core.

    Raises:
        UsageError: an operator of the graph is not known here.
    """
    torch = _torch()
    ours = OnnxBackend(path)
    prepare = ours.metadata.preprocessing.apply
    if threads:
        torch.set_num_threads(threads)
    module = network_of(path)
    if runner == "ort-torch-cpu":
        example = torch.from_numpy(prepare(random_images(ours.input_view, min(batch, 2))))
        session = open_session(exported_by_torch(module, example), threads=threads)
        return Target(
            ours.input_view,
            lambda images: {"features": session.run(["features"], {"images": prepare(images)})[0]},
            None,
            False,
            (),
            ours.facts.weights_sha256,
        )
    device = "cuda" if runner.endswith("cuda") else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("PyTorch must have been built with CUDA and see a GPU. Received: one that does not.")
    module = module.to(device)
    run: Callable[[Any], Any] = torch.compile(module) if "compile" in runner else module
    resident = torch.from_numpy(prepare(random_images(ours.input_view, batch))).to(device)

    def host(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {"features": run(torch.from_numpy(prepare(images)).to(device)).cpu().numpy()}

    def on_device() -> None:
        with torch.inference_mode():
            run(resident)
        torch.cuda.synchronize()

    return Target(
        ours.input_view, host, on_device if device == "cuda" else None, False, (), ours.facts.weights_sha256
    )


def exported_by_torch(module: Any, example: Any) -> bytes:
    """An ONNX file by PyTorch's exporter, of any batch size, with input `images` and output `features`."""
    torch = _torch()
    with (
        tempfile.TemporaryDirectory(prefix="swav-tf-") as folder,
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # it advertises its successor, which needs another package
        file = Path(folder) / "exported.onnx"
        torch.onnx.export(
            module,
            (example,),
            str(file),
            opset_version=OPSET,
            input_names=["images"],
            output_names=["features"],
            dynamic_axes={"images": {0: "batch"}, "features": {0: "batch"}},
            dynamo=False,
        )
        return file.read_bytes()


def network_of(path: Path) -> Any:
    """A `torch.nn.Module` that computes `features` of an exported file.

    Raises:
        UsageError: an operator is not known here.
    """
    import onnx

    torch = _torch()
    graph = onnx.load(path).graph
    nodes = _towards(graph, "features")
    if unknown := sorted({node.op_type for node in nodes} - set(_OPERATORS)):
        raise UsageError(
            f"PyTorch's side of the benchmark knows {', '.join(sorted(_OPERATORS))}. "
            f"Received: {', '.join(unknown)} in {path}; leave out the runners with torch."
        )
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}

    class Network(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch need not be here
        """The nodes of the graph, in order."""

        def __init__(self) -> None:
            super().__init__()
            self.places: dict[str, str] = {}
            self.lists = {name: values.tolist() for name, values in constants.items() if values.ndim <= 1}
            for number, (name, values) in enumerate(constants.items()):
                if np.issubdtype(values.dtype, np.floating):
                    self.places[name] = f"constant_{number}"
                    self.register_buffer(self.places[name], torch.from_numpy(np.array(values)))

        def forward(self, images: Any) -> Any:
            """Features of what the file's input takes."""
            found: dict[str, Any] = {"images": images}
            for name, place in self.places.items():
                found[name] = getattr(self, place)
            for node, attributes in steps:
                inputs = [found.get(name, self.lists.get(name)) for name in node[1]]
                found[node[2]] = _OPERATORS[node[0]](torch, inputs, attributes)
            return found["features"]

    steps = [
        (
            (node.op_type, tuple(node.input), node.output[0]),
            {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute},
        )
        for node in nodes
    ]
    return Network().eval()


def _torch() -> Any:
    # Not `import torch`: where it is installed its types would be checked, and elsewhere not.
    return importlib.import_module("torch")


def _towards(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """The nodes that an output needs, in order."""
    needed, kept = {output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1]


def _padding(attributes: Mapping[str, Any]) -> list[int]:
    """Left, right, top, bottom, as torch.nn.functional.pad takes them."""
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return [left, right, top, bottom]


def _conv(torch: Any, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    left, right, top, bottom = _padding(attributes)
    image, kernel, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    if (left, top) == (right, bottom):
        padding: Any = (top, left)
    else:
        image, padding = torch.nn.functional.pad(image, [left, right, top, bottom]), 0
    return torch.nn.functional.conv2d(
        image,
        kernel,
        bias,
        stride=attributes.get("strides", 1),
        padding=padding,
        dilation=attributes.get("dilations", 1),
        groups=attributes.get("group", 1),
    )


def _max_pool(torch: Any, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    padded = torch.nn.functional.pad(inputs[0], _padding(attributes), value=float("-inf"))
    return torch.nn.functional.max_pool2d(padded, attributes["kernel_shape"], attributes.get("strides", 1))


def _pad(torch: Any, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    _, _, top, left, _, _, bottom, right = inputs[1]
    value = 0.0 if len(inputs) < 3 or inputs[2] is None else inputs[2]
    return torch.nn.functional.pad(inputs[0], [left, right, top, bottom], value=float(value))


def _cast(torch: Any, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    if attributes["to"] != 1:
        raise UsageError(f"A Cast must be to float32 (1). Received: {attributes['to']}.")
    return inputs[0].to(torch.float32)


_OPERATORS: Mapping[str, Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]] = {
    "Add": lambda torch, inputs, attributes: inputs[0] + inputs[1],
    "Cast": _cast,
    "Conv": _conv,
    "Flatten": lambda torch, inputs, attributes: inputs[0].flatten(attributes.get("axis", 1)),
    "GlobalAveragePool": lambda torch, inputs, attributes: inputs[0].mean((2, 3), keepdim=True),
    "Identity": lambda torch, inputs, attributes: inputs[0],
    "MaxPool": _max_pool,
    "Mul": lambda torch, inputs, attributes: inputs[0] * inputs[1],
    "Pad": _pad,
    "Relu": lambda torch, inputs, attributes: torch.relu(inputs[0]),
    "Reshape": lambda torch, inputs, attributes: inputs[0].reshape(
        [inputs[0].shape[place] if size == 0 else size for place, size in enumerate(inputs[1])]
    ),
    "Squeeze": lambda torch, inputs, attributes: inputs[0].squeeze(tuple(inputs[1])),
    "Sub": lambda torch, inputs, attributes: inputs[0] - inputs[1],
    "Transpose": lambda torch, inputs, attributes: inputs[0].permute(attributes["perm"]),
}
