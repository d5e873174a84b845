"""Find the models to measure: exported files and run folders, with the facts about each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluate.backends import is_run_folder
from evaluate.backends.checksums import PARITY
from evaluate.backends.engine_file import SUFFIXES, read_facts
from evaluate.backends.onnx_metadata import OnnxMetadata
from evaluate.benchmark.schema import Accuracy, Model
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import file_sha256


@dataclass(frozen=True)
class Artifact:
    """A file or run folder that can be run.

    Attributes:
        model: the facts about it.
        path: where it is.
        target: the device an int8 file is made for, `cpu` or `tensorrt`; None for other precisions.
        batches: minimum and maximum images per call; None: any number.
    """

    model: Model
    path: Path
    target: str | None = None
    batches: tuple[int, int] | None = None


def find_artifacts(paths: Sequence[Path]) -> list[Artifact]:
    """Return the models in folders by `swav-tf export`, single files and run folders.

    Raises:
        UsageError: a path has nothing to run, a run is not of pretraining, or two models have one name.
        DataError: a file is damaged.
    """
    found: list[Artifact] = []
    for path in paths:
        if not path.exists():
            raise UsageError(
                f"MODEL not found: {path}. Give a folder or file by `swav-tf export`, or a run folder."
            )
        if is_run_folder(path):
            found.append(_run_folder(path))
            continue
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [file for file in files if file.suffix in (".onnx", *SUFFIXES)]
        if not files:
            raise UsageError(
                f"MODEL must contain .onnx or {SUFFIXES[0]} files, or be a run folder with config.yaml. "
                f"Received: {path}, which has none. Create files with `swav-tf export`."
            )
        found += [_onnx(file) if file.suffix == ".onnx" else _engine(file) for file in files]
    unique = {artifact.path.resolve(): artifact for artifact in found}
    artifacts = _name_runs(list(unique.values()))
    _check_names(artifacts)
    return artifacts


# === Facts ===


def _onnx(path: Path) -> Artifact:
    from evaluate.backends.onnx_backend import OnnxBackend

    facts = OnnxBackend(path).metadata
    quantization: dict[str, Any] = facts.quantisation or {}
    files = [path, *([] if facts.weights_file is None else [path.with_name(facts.weights_file.name)])]
    size = sum(file.stat().st_size for file in files)
    return Artifact(
        _model_of(path, "onnx", facts, size),
        path,
        target=quantization.get("target") if facts.precision == "int8" else None,
    )


def _engine(path: Path) -> Artifact:
    engine = read_facts(path)
    model = _model_of(path, "engine", engine.metadata(path), path.stat().st_size)
    return Artifact(model, path, batches=(engine.profile.min, engine.profile.max))


def _model_of(path: Path, kind: Any, facts: OnnxMetadata, size: int) -> Model:
    return Model(
        name=path.resolve().parent.name,
        kind=kind,
        file=str(path),
        precision=facts.precision,
        bytes=size,
        file_sha256=file_sha256(path),
        weights_sha256=facts.weights_sha256,
        recipe=facts.recipe,
        step=facts.step,
        side=facts.preprocessing.crop,
        accuracy=_accuracy(path),
    )


def _run_folder(path: Path) -> Artifact:
    from swav_tf.runs.checkpoint import CheckpointStore
    from swav_tf.runs.model_facts import read_pretraining_recipe

    recipe = read_pretraining_recipe(path)
    store = CheckpointStore(path / "checkpoints", kind="pretrain")
    if not store.steps():
        raise UsageError(f"{path} has no checkpoint yet. Wait for `swav-tf pretrain` to write one.")
    step = store.steps()[-1]
    checkpoint = store.read(step)
    model = Model(
        name=path.resolve().name,
        kind="run",
        file=str(path),
        precision="fp32",
        bytes=sum(array.nbytes for array in checkpoint.arrays.values()),
        file_sha256=checkpoint.facts["sha256"],
        weights_sha256=checkpoint.facts["sha256"],
        recipe=recipe.name,
        step=step,
        side=recipe.data.evaluation.crop,
    )
    return Artifact(model, path)


def _accuracy(path: Path) -> Accuracy | None:
    """Return the result of `swav-tf verify` for a file, None if it was not verified."""
    file = path.parent / PARITY
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))["files"].get(path.name)
        if facts is None:
            return None
        return Accuracy(
            passed=facts["passed"],
            knn=facts["knn"],
            knn_reference=facts["knn_reference"],
            knn_images=facts["knn_images"],
            cosine_min=facts["cosine_min"],
            relative_error=max(facts["relative_error"].values(), default=None),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is not a readable result of `swav-tf verify`: {error!r}. Remove it, or verify again."
        ) from error


# === Names ===


def _name_runs(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Give a run folder the name of its export, if that is measured too: they are one model."""
    names = {a.model.weights_sha256: a.model.name for a in reversed(artifacts) if a.model.kind != "run"}
    return [
        replace(artifact, model=artifact.model.model_copy(update={"name": name}))
        if artifact.model.kind == "run" and (name := names.get(artifact.model.weights_sha256))
        else artifact
        for artifact in artifacts
    ]


def _check_names(artifacts: Sequence[Artifact]) -> None:
    """Refuse models that a cell could not distinguish."""
    folders: dict[str, Path] = {}
    files: dict[tuple[str, str, str, str | None], Path] = {}
    for artifact in artifacts:
        model, path = artifact.model, artifact.path.resolve()
        folder = path if model.kind == "run" else path.parent
        named_after_export = model.kind == "run" and model.name != path.name
        other = folder if named_after_export else folders.setdefault(model.name, folder)
        if other != folder:
            raise UsageError(
                f"Folders of models must have different names. Received: {other} and {folder}. Rename one of them."
            )
        key = (model.name, model.kind, model.precision, artifact.target)
        if key in files:
            raise UsageError(
                f"A folder must have one file of a kind and precision. Received: {files[key]} and {artifact.path}, "
                f"both {model.precision}. Keep them in two folders."
            )
        files[key] = artifact.path
