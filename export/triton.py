"""Write a model repository for Triton Inference Server: config.pbtxt and files at the places it reads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from evaluate.backends.checksums import check_unchanged, check_weights
from evaluate.backends.engine_file import SUFFIXES, Batches, read_engine
from evaluate.backends.onnx_backend import open_session
from evaluate.backends.onnx_metadata import OnnxMetadata, read_metadata, read_properties
from export.staging import filled_folder
from swav_tf.plumbing.errors import UsageError

VERSION: Final = "1"  # of each model: a folder
MAX_BATCH: Final = 32
USUAL_BATCH: Final = 8
MAX_DELAY_MICROSECONDS: Final = 1000
LABELS: Final = "labels.txt"
TYPES: Final = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}


@dataclass(frozen=True)
class ServedModel:
    """One model of a repository."""

    name: str  # of its folder, which clients request
    source: Path  # the ONNX file or engine
    weights: Path | None  # the second file of a large graph
    tensors: tuple[str, ...]  # inputs and outputs, as lines of config.pbtxt
    # Numbers of images that run at once without waiting for more; the last is the largest allowed.
    batches: tuple[int, ...]
    kind: str  # processor that runs it: Triton's KIND_AUTO, KIND_CPU or KIND_GPU
    comments: tuple[str, ...]  # lines for people
    labels: tuple[str, ...]  # names of the classes of `logits`
    is_engine: bool = False  # whether TensorRT runs it


def write_repository(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Write a folder for each file, for Triton's --model-repository, and return these folders.

    Models of the same names are replaced. The files are ONNX files from `swav-tf export`, and engines next to the ONNX
    file that they were built from.

    Raises:
        UsageError: Triton cannot serve an engine.
        DataError: a file is damaged.
        ExportError: the disk is full or read-only.
    """
    models = [_served_engine(path) if path.suffix in SUFFIXES else _served_onnx(path) for path in files]
    with filled_folder(folder) as part:
        for model in models:
            version = part / model.name / VERSION
            version.mkdir(parents=True)
            shutil.copyfile(model.source, version / ("model.plan" if model.is_engine else "model.onnx"))
            if model.weights is not None:  # under its own name, which the graph refers to
                shutil.copyfile(model.weights, version / model.weights.name)
            if model.labels:
                labels = "".join(f"{label}\n" for label in model.labels)
                (part / model.name / LABELS).write_text(labels, encoding="utf-8")
            (part / model.name / "config.pbtxt").write_text(_config_text(model), encoding="utf-8")
    return [folder / model.name for model in models]


def _config_text(model: ServedModel) -> str:
    lines = [
        *(f"# {comment}" for comment in model.comments),
        f"name: {json.dumps(model.name)}",
        'platform: "tensorrt_plan"' if model.is_engine else 'backend: "onnxruntime"',
        f"max_batch_size: {model.batches[-1]}",
        *model.tensors,
        "dynamic_batching {",
        f"  preferred_batch_size: [ {', '.join(map(str, model.batches))} ]",
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
    check_unchanged(path)
    session = open_session(path)
    facts = read_metadata(read_properties(path), str(path))
    check_weights(path, facts.weights_file)
    kind = "KIND_AUTO" if facts.precision == "fp32" else "KIND_GPU"
    return ServedModel(
        name=_name(facts, path),
        source=path,
        weights=None if facts.weights_file is None else path.with_name(facts.weights_file.name),
        tensors=(
            *(_tensor("input", value, facts) for value in session.get_inputs()),
            *(_tensor("output", value, facts) for value in session.get_outputs()),
        ),
        batches=(USUAL_BATCH, MAX_BATCH),
        kind="KIND_CPU" if (facts.quantisation or {}).get("target") == "cpu" else kind,
        comments=_comments(facts),
        labels=facts.class_names,
    )


def check_served(module: str, profile: Batches, what: str) -> None:
    """Raise UsageError if Triton cannot serve an engine of this module and these batches."""
    if module != "tensorrt":
        raise UsageError(
            f"Triton serves engines by TensorRT. Received: {what}, by {module}. Build it with --tensorrt tensorrt."
        )
    if profile.min != 1:
        raise UsageError(
            f"Triton needs an engine whose smallest batch is 1. Received: {what}, whose smallest batch is "
            f"{profile.min}. Build it with --batch 1,..."
        )


def _served_engine(path: Path) -> ServedModel:
    _, engine = read_engine(path)
    check_served(engine.module, engine.profile, str(path))
    graph = path.with_name(engine.onnx)
    if not graph.exists():
        raise UsageError(
            f"--triton takes an engine next to the ONNX file it was built from. File not found: {graph}."
        )
    if check_unchanged(graph).sha256 != engine.onnx_sha256:
        raise UsageError(
            f"--triton takes an engine next to the ONNX file it was built from. {graph} is another: build {path} again."
        )
    model = _served_onnx(graph)
    on = f" for {engine.gpu.name}" if engine.gpu else ""
    return replace(
        model,
        name=f"{_name(engine.metadata(path), path)}-tensorrt",
        source=path,
        weights=None,
        batches=tuple(sorted({engine.profile.opt, engine.profile.max})),
        kind="KIND_GPU",
        is_engine=True,
        comments=(*model.comments, f"Built by {engine.builder}{on}: the server must have the same."),
    )


def _tensor(place: str, value: Any, facts: OnnxMetadata) -> str:
    """Return the line of an input or output; dimensions are without the batch, -1 for any size."""
    dims = ", ".join(str(dim if isinstance(dim, int) else -1) for dim in value.shape[1:])
    labels = f" label_filename: {json.dumps(LABELS)}" if value.name == "logits" and facts.class_names else ""
    return f"{place} {{ name: {json.dumps(value.name)} data_type: {TYPES[value.type]} dims: [ {dims} ]{labels} }}"


def _name(facts: OnnxMetadata, path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{facts.recipe}-{path.stem.removeprefix('model-')}")


def _comments(facts: OnnxMetadata) -> tuple[str, ...]:
    how = facts.preprocessing
    prepared = (
        f"{how.orientation}, transparent parts over {list(how.background)}, RGB, short side {how.resize} pixels "
        f"({how.interpolation}), center crop {how.crop}"
    )
    if not how.inside:
        prepared += f", / 255, minus {list(how.mean)}, over {list(how.std)}, channels first"
    return (
        f"swav-tf: step {facts.step}, {facts.precision}, weights {facts.weights_sha256}",
        f"Images: {prepared}.",
    )
