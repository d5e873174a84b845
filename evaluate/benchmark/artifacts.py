"""What there is to run: the files of exports, and run folders, with the facts about each. No TensorFlow."""

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
    """Something that can be run.

    Attributes:
        model: facts about it.
        path: where it is.
        target: where its int8 is meant to run, `cpu` or `tensorrt`; None for other precisions.
        batches: fewest and most images in a call; None: any number.
    """

    model: Model
    path: Path
    target: str | None = None
    batches: tuple[int, int] | None = None


def find_artifacts(paths: Sequence[Path]) -> list[Artifact]:
    """What folders by `swav-tf export`, single files and run folders hold.

    Raises:
        UsageError: there is nothing to run, a run is none of pretraining, or two models bear one name.
        DataError: a file is damaged.
    """
    found: list[Artifact] = []
    for path in paths:
        if not path.exists():
            raise UsageError(
                f"MODEL must be a folder or file by `swav-tf export`, or a run folder. Received: {path}, not there."
            )
        if is_run_folder(path):
            found.append(_run_folder(path))
            continue
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [file for file in files if file.suffix in (".onnx", *SUFFIXES)]
        if not files:
            raise UsageError(
                f"MODEL must hold .onnx or {SUFFIXES[0]} files, or be a run folder with config.yaml. Received: {path}, "
                "which holds none."
            )
        found += [_onnx(file) if file.suffix == ".onnx" else _engine(file) for file in files]
    unique = {artifact.path.resolve(): artifact for artifact in found}
    artifacts = _with_runs_named(list(unique.values()))
    _refuse_equal_names(artifacts)
    _refuse_twins(artifacts)
    return artifacts


# === Facts ===


def _onnx(path: Path) -> Artifact:
    from evaluate.backends.onnx_backend import OnnxBackend
    from evaluate.benchmark.work import count_work

    runner = OnnxBackend(path)
    facts = runner.metadata
    quantisation: dict[str, Any] = facts.quantisation or {}
    model = Model(
        name=_name(path),
        kind="onnx",
        file=str(path),
        precision=facts.precision,
        bytes=sum(file.stat().st_size for file in _files_of(path, facts)),
        file_sha256=file_sha256(path),
        weights_sha256=facts.weights_sha256,
        recipe=facts.recipe,
        step=facts.step,
        side=runner.input_view.crop,
        gflop_per_image=round(count_work(path).flops / 1e9, 9),
        accuracy=_accuracy(path),
    )
    return Artifact(model, path, target=quantisation.get("target") if facts.precision == "int8" else None)


def _engine(path: Path) -> Artifact:
    engine = read_facts(path)
    facts = engine.metadata(path)
    model = Model(
        name=_name(path),
        kind="engine",
        file=str(path),
        precision=facts.precision,
        bytes=path.stat().st_size,
        file_sha256=file_sha256(path),
        weights_sha256=facts.weights_sha256,
        recipe=facts.recipe,
        step=facts.step,
        side=facts.preprocessing.crop,
        accuracy=_accuracy(path),
    )
    return Artifact(model, path, batches=(engine.profile.min, engine.profile.max))


def _run_folder(path: Path) -> Artifact:
    from swav_tf.runs.checkpoint import CheckpointStore
    from swav_tf.runs.model_facts import read_pretraining_recipe

    recipe = read_pretraining_recipe(path)
    store = CheckpointStore(path / "checkpoints", kind="pretrain")
    if not store.steps():
        raise UsageError(f"{path} has no checkpoint yet: let `swav-tf pretrain` write one.")
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


def _files_of(path: Path, facts: OnnxMetadata) -> list[Path]:
    """The file, and that of its weights where they are apart."""
    return [path, *([] if facts.weights_file is None else [path.with_name(facts.weights_file.name)])]


def _name(path: Path) -> str:
    """What the files of one export share."""
    return path.resolve().parent.name


def _accuracy(path: Path) -> Accuracy | None:
    """What `swav-tf verify` wrote beside a file."""
    file = path.parent / PARITY
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))["files"].get(path.name)
        if facts is None:
            return None  # verified without this file
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
            f"{file} must be by `swav-tf verify`; it cannot be read: {error!r}. Remove it, or verify anew."
        ) from error


# === Names ===


def _with_runs_named(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """A run folder bears the name of its own export, if that is here: they are one model."""
    names: dict[str, str] = {}
    for artifact in artifacts:
        if artifact.model.kind != "run":
            names.setdefault(artifact.model.weights_sha256, artifact.model.name)

    def renamed(artifact: Artifact) -> Artifact:
        name = names.get(artifact.model.weights_sha256)
        if artifact.model.kind != "run" or name is None:
            return artifact
        return replace(artifact, model=artifact.model.model_copy(update={"name": name}))

    return [renamed(artifact) for artifact in artifacts]


def _refuse_twins(artifacts: Sequence[Artifact]) -> None:
    """Two files that the same cell could mean."""
    seen: dict[tuple[str, str, str, str | None], Path] = {}
    for artifact in artifacts:
        key = (artifact.model.name, artifact.model.kind, artifact.model.precision, artifact.target)
        if key in seen:
            raise UsageError(
                f"A model must have one file of a kind and precision. Received: {seen[key]} and {artifact.path}, both "
                f"{artifact.model.precision}. Keep them in two folders."
            )
        seen[key] = artifact.path


def _refuse_equal_names(artifacts: Sequence[Artifact]) -> None:
    """Two exports whose folders are called alike would be taken for one model."""
    folders: dict[str, set[Path]] = {}
    for artifact in artifacts:
        if artifact.model.kind != "run" or artifact.model.name == artifact.path.resolve().name:
            place = (
                artifact.path.resolve() if artifact.model.kind == "run" else artifact.path.resolve().parent
            )
            folders.setdefault(artifact.model.name, set()).add(place)
    for name, places in folders.items():
        if len(places) > 1:
            raise UsageError(
                f"Models are told apart by the names of their folders, which must differ. Received: {name} in "
                f"{', '.join(sorted(map(str, places)))}."
            )
