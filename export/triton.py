"""Write a model repository for Triton Inference Server: config.pbtxt and files at the places it reads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from evaluate.backends.checksums import check_unchanged, check_weights
from evaluate.backends.engine_file import SUFFIXES, read_engine
from evaluate.backends.onnx_backend import open_session
from evaluate.backends.onnx_metadata import OnnxMetadata, read_metadata
from export.staging import filled_folder
from swav_tf.plumbing.errors import UsageError

VERSION: Final = "1"  # of each model: a folder
MAX_BATCH: Final = 32
USUAL_BATCH: Final = 8
MAX_DELAY_MICROSECONDS: Final = 1000
LABELS: Final = "labels.txt"
TYPES: Final = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}

Kind = Literal["KIND_AUTO", "KIND_CPU", "KIND_GPU"]


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: in the graph.
        data_type: Triton's name.
        dims: without the batch; -1 for any.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ServedModel:
    """One model of a repository.

    Attributes:
        name: of its folder, which clients request.
        source: the ONNX file or engine.
        weights: the second file of a large graph, or None.
        inputs, outputs: of its graph.
        preferred: numbers of images that run at once without waiting for more.
        max_batch: largest number of images at once.
        kind: processor that runs it.
        comments: lines for people.
        labels: names of the classes of `logits`.
    """

    name: str
    source: Path
    weights: Path | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    preferred: tuple[int, ...]
    max_batch: int
    kind: Kind
    comments: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def is_engine(self) -> bool:
        """Return whether TensorRT runs it."""
        return self.source.suffix in SUFFIXES


def write_repository(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Write a folder for each file, for Triton's --model-repository.

    Args:
        folder: the repository; models of the same names are replaced.
        files: ONNX files by `swav-tf export`, and engines next to the ONNX file that they were built from.

    Returns:
        The models' folders.

    Raises:
        UsageError: Triton cannot serve an engine.
        DataError: a file is damaged.
        ExportError: the disk is full or read-only.
    """
    models = [_served_engine(path) if path.suffix in SUFFIXES else _served_onnx(path) for path in files]
    with filled_folder(folder) as part:
        for model in models:
            target = part / model.name
            (target / VERSION).mkdir(parents=True)
            name = "model.plan" if model.is_engine else "model.onnx"
            shutil.copyfile(model.source, target / VERSION / name)
            if model.weights is not None:  # under its own name, which the graph refers to
                shutil.copyfile(model.weights, target / VERSION / model.weights.name)
            if model.labels:
                labels = "".join(f"{label}\n" for label in model.labels)
                (target / LABELS).write_text(labels, encoding="utf-8")
            (target / "config.pbtxt").write_text(config_text(model), encoding="utf-8")
    return [folder / model.name for model in models]


def config_text(model: ServedModel) -> str:
    """Return the content of config.pbtxt."""
    platform = 'platform: "tensorrt_plan"' if model.is_engine else 'backend: "onnxruntime"'
    lines = [f"# {comment}" for comment in model.comments]
    lines += [f"name: {_quoted(model.name)}", platform, f"max_batch_size: {model.max_batch}"]
    for place, tensors in (("input", model.inputs), ("output", model.outputs)):
        for tensor in tensors:
            dims = ", ".join(map(str, tensor.dims))
            labels = (
                f' label_filename: "{LABELS}"'
                if place == "output" and tensor.name == "logits" and model.labels
                else ""
            )
            lines.append(
                f"{place} {{ name: {_quoted(tensor.name)} data_type: {tensor.data_type} dims: [ {dims} ]{labels} }}"
            )
    preferred = ", ".join(map(str, model.preferred))
    lines += [
        "dynamic_batching {",
        f"  preferred_batch_size: [ {preferred} ]",
        f"  max_queue_delay_microseconds: {MAX_DELAY_MICROSECONDS}",
        "}",
        f"instance_group {{ count: 1 kind: {model.kind} }}",
    ]
    if not model.is_engine and model.kind != "KIND_CPU":
        lines += [
            "# On a GPU, ONNX Runtime can hand the graph to TensorRT, which then builds an engine at the start:",
            '# optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }',
        ]
    return "\n".join(lines) + "\n"


def _served_onnx(path: Path) -> ServedModel:
    facts, inputs, outputs = _read_onnx(path)
    target = (facts.quantisation or {}).get("target")
    kind: Kind = "KIND_AUTO" if facts.precision == "fp32" else "KIND_GPU"
    return ServedModel(
        name=_name(facts, path),
        source=path,
        weights=None if facts.weights_file is None else path.with_name(facts.weights_file.name),
        inputs=inputs,
        outputs=outputs,
        preferred=(USUAL_BATCH, MAX_BATCH),
        max_batch=MAX_BATCH,
        kind="KIND_CPU" if target == "cpu" else kind,
        comments=_comments(facts),
        labels=facts.class_names if any(tensor.name == "logits" for tensor in outputs) else (),
    )


def _served_engine(path: Path) -> ServedModel:
    _, engine = read_engine(path)
    if engine.module != "tensorrt":
        raise UsageError(
            f"Triton serves engines by TensorRT. Received: {path}, by {engine.builder}. Build it with "
            "--tensorrt tensorrt."
        )
    if engine.profile.min != 1:
        raise UsageError(
            f"Triton must be able to run one image alone. Received: {path}, for at least {engine.profile.min}. "
            "Build it with --batch 1,..."
        )
    graph = path.with_name(engine.onnx)
    if not graph.exists():
        raise UsageError(
            f"--triton takes an engine next to the ONNX file it was built from. File not found: {graph}."
        )
    facts, inputs, outputs = _read_onnx(graph)
    on = f" for {engine.gpu.name}" if engine.gpu else ""
    sizes = sorted({engine.profile.opt, engine.profile.max})
    return ServedModel(
        name=f"{_name(facts, path)}-tensorrt",
        source=path,
        weights=None,
        inputs=inputs,
        outputs=outputs,
        preferred=tuple(sizes),
        max_batch=engine.profile.max,
        kind="KIND_GPU",
        comments=(*_comments(facts), f"Built by {engine.builder}{on}: the server must have the same."),
        labels=facts.class_names if any(tensor.name == "logits" for tensor in outputs) else (),
    )


def _read_onnx(path: Path) -> tuple[OnnxMetadata, tuple[Tensor, ...], tuple[Tensor, ...]]:
    check_unchanged(path)
    session = open_session(path)
    facts = read_metadata(session.get_modelmeta().custom_metadata_map, str(path))
    check_weights(path, facts.weights_file)
    inputs, outputs = (
        tuple(map(_tensor, values)) for values in (session.get_inputs(), session.get_outputs())
    )
    return facts, inputs, outputs


def _tensor(value: Any) -> Tensor:
    dims = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape[1:])
    return Tensor(value.name, TYPES[value.type], dims)


def _name(facts: OnnxMetadata, path: Path) -> str:
    plain = f"{facts.recipe}-{path.stem.removeprefix('model-')}"
    return re.sub(r"[^A-Za-z0-9_.-]", "_", plain)


def _comments(facts: OnnxMetadata) -> tuple[str, ...]:
    how = facts.preprocessing
    prepared = f"RGB, short side {how.resize} pixels ({how.interpolation}), center crop {how.crop}"
    if not how.inside:
        prepared += f", / 255, minus {list(how.mean)}, over {list(how.std)}, channels first"
    return (
        f"swav-tf: step {facts.step}, {facts.precision}, weights {facts.weights_sha256}",
        f"Images: {prepared}.",
    )


def _quoted(text: str) -> str:
    return json.dumps(text)
