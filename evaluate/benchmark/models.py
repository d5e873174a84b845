"""Find the models to measure: exported files and run folders, with the facts about each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluate.backends import is_run_folder
from evaluate.backends.checksums import PARITY
from evaluate.backends.engine_file import SUFFIXES, read_facts
from evaluate.backends.foreign import weight_files
from evaluate.backends.onnx_metadata import OnnxMetadata
from evaluate.benchmark.schema import Accuracy, Model
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import file_sha256


def find_models(paths: Sequence[Path]) -> list[Model]:
    """Return the models in folders from `swav-tf export`, single ONNX files, also third-party ones, and run folders."""
    found: dict[Path, Model] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(
                f"MODEL not found: {path}. Pass a folder or file from `swav-tf export`, an ONNX file or a run folder."
            )
        if is_run_folder(path):
            found[path.resolve()] = _run_folder(path)
            continue
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [file for file in files if file.suffix in (".onnx", *SUFFIXES)]
        if not files:
            raise UsageError(
                f"MODEL must contain .onnx or {SUFFIXES[0]} files, or be a run folder with config.yaml. "
                f"Received: {path}, which has none. Create files with `swav-tf export`."
            )
        for file in files:
            found[file.resolve()] = _onnx(file) if file.suffix == ".onnx" else _engine(file)
    models = _name_runs(list(found.values()))
    _check_names(models)
    return models


# === Facts ===


def _onnx(path: Path) -> Model:
    from evaluate.backends.onnx_backend import OnnxBackend

    backend = OnnxBackend(path, only_timing=True)
    facts, batch = backend.metadata, backend.graph.batch
    if backend.is_foreign:
        size, name = sum(file.stat().st_size for file in weight_files(path)), path.stem
        batches = None if batch is None else (batch, batch)
        return _model(path, facts, kind="onnx", name=name, bytes=size, batches=batches)
    files = [path, *([] if facts.weights_file is None else [path.with_name(facts.weights_file.name)])]
    size = sum(file.stat().st_size for file in files)
    target = (facts.quantisation or {}).get("target") if facts.precision == "int8" else None
    return _model(path, facts, kind="onnx", bytes=size, target=target)


def _engine(path: Path) -> Model:
    engine = read_facts(path)
    batches = (engine.profile.min, engine.profile.max)
    facts = engine.metadata(path)
    return _model(path, facts, kind="engine", bytes=path.stat().st_size, batches=batches)


def _model(path: Path, facts: OnnxMetadata, name: str | None = None, **more: Any) -> Model:
    return Model(
        name=name or path.resolve().parent.name,
        file=str(path),
        precision=facts.precision,
        file_sha256=file_sha256(path),
        weights_sha256=facts.weights_sha256,
        recipe=facts.recipe,
        step=facts.step,
        side=facts.preprocessing.crop,
        accuracy=_accuracy(path),
        **more,
    )


def _run_folder(path: Path) -> Model:
    from evaluate.backends.keras_backend import newest_checkpoint

    recipe, checkpoint = newest_checkpoint(path)
    return Model(
        name=path.resolve().name,
        kind="run",
        file=str(path),
        precision="fp32",
        bytes=sum(array.nbytes for array in checkpoint.arrays.values()),
        file_sha256=checkpoint.facts["sha256"],
        weights_sha256=checkpoint.facts["sha256"],
        recipe=recipe.name,
        step=checkpoint.step,
        side=recipe.data.evaluation.crop,
    )


def _accuracy(path: Path) -> Accuracy | None:
    """Return the result of `swav-tf verify` for a file, None if it was not verified."""
    file = path.parent / PARITY
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))["files"].get(path.name)
        if facts is None:
            return None
        same = {key: facts[key] for key in ("passed", "knn", "knn_reference", "knn_images", "cosine_min")}
        return Accuracy(**same, relative_error=max(facts["relative_error"].values(), default=None))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is not a readable result of `swav-tf verify`: {error!r}. Remove it, or verify again."
        ) from error


# === Names ===


def _name_runs(models: Sequence[Model]) -> list[Model]:
    """Give a run folder the name of its export, if that is measured too: they are one model."""
    exports = {model.weights_sha256: model.name for model in reversed(models) if model.kind != "run"}
    names = [exports.get(m.weights_sha256, m.name) if m.kind == "run" else m.name for m in models]
    return [model.model_copy(update={"name": name}) for model, name in zip(models, names, strict=True)]


def _check_names(models: Sequence[Model]) -> None:
    """Refuse models that a cell could not distinguish."""
    files: dict[tuple[str, str, str, str | None], str] = {}
    for model in models:
        twin = files.setdefault((model.name, model.kind, model.precision, model.target), model.file)
        if twin != model.file:
            raise UsageError(
                "Folders of models must have different names, and one file of a kind and precision. "
                f"Received: {twin} and {model.file}. Rename a folder, or move one of the files."
            )
