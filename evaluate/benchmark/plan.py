"""Which cells a benchmark has: models, and what can run each of them. No TensorFlow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

from evaluate.benchmark.machine import no_gpu_because
from evaluate.benchmark.schema import Accuracy, Cell, Model
from evaluate.benchmark.targets import RUNNERS, Kind, why_not
from evaluate.runners.onnx_metadata import OnnxMetadata, Precision
from evaluate.runners.runner import is_run_folder
from swav_tf.errors import DataError, UsageError

ENGINES: Final = (".plan", ".engine")
NOT_YET: Final = "not measured yet"
PARITY: Final = "parity.json"
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)


@dataclass(frozen=True)
class Artifact:
    """Something that can be run.

    Attributes:
        model: facts about it.
        path: where it is.
        kind: what it is.
        target: where its int8 is meant to run, `cpu` or `tensorrt`; None for other precisions.
        batches: fewest and most images in a call; None: any number.
    """

    model: Model
    path: Path
    kind: Kind
    target: str | None = None
    batches: tuple[int, int] | None = None


@dataclass(frozen=True)
class Planned:
    """One cell to be.

    Attributes:
        cell: as it is before it is measured; skipped, or waiting.
        artifact: what it runs; None where it is skipped.
    """

    cell: Cell
    artifact: Artifact | None


def find_artifacts(paths: Sequence[Path]) -> list[Artifact]:
    """What folders by `swav-tf export`, single files and run folders hold.

    Raises:
        UsageError: there is nothing to run, or two models bear one name.
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
        files = [file for file in files if file.suffix in (".onnx", *ENGINES)]
        if not files:
            raise UsageError(
                f"MODEL must hold .onnx or {ENGINES[0]} files, or be a run folder with config.yaml. Received: {path}, "
                "which holds none."
            )
        found += [_onnx(file) if file.suffix == ".onnx" else _engine(file) for file in files]
    unique = {artifact.path.resolve(): artifact for artifact in found}
    artifacts = _with_runs_named(list(unique.values()))
    _refuse_equal_names(artifacts)
    _refuse_twins(artifacts)
    return artifacts


def plan_cells(
    artifacts: Sequence[Artifact],
    *,
    runners: Sequence[str] | None,
    precisions: Sequence[Precision] | None,
    batches: Sequence[int],
) -> list[Planned]:
    """All cells, model by model.

    Args:
        artifacts: what there is.
        runners: that are wanted; None: all that have something to run here, peers left out.
        precisions: that are wanted; None: all that there are.
        batches: numbers of images in a call.

    Raises:
        UsageError: there is no runner of such a name.
    """
    planned = []
    reasons = {runner: why_not(runner) for runner in runners or RUNNERS}
    names = dict.fromkeys(artifact.model.name for artifact in artifacts)
    for runner in runners if runners is not None else _useful(artifacts):
        for name in names:
            of_model = [artifact for artifact in artifacts if artifact.model.name == name]
            wanted = precisions or sorted({a.model.precision for a in of_model}, key=PRECISIONS.index)
            for precision in wanted:
                if precision != "fp32" and (RUNNERS[runner].peer or runner == "keras"):
                    continue  # they have no other
                artifact, lacking = _for_runner(of_model, runner, precision)
                if artifact is None and runners is None:
                    continue
                for batch in batches:
                    reason = reasons[runner] or lacking or _batch_beyond(artifact, batch)
                    cell = Cell(
                        model=name,
                        runner=runner,
                        precision=precision,
                        batch=batch,
                        file=None if artifact is None else str(artifact.path),
                        status="skipped",
                        reason=reason or NOT_YET,
                    )
                    planned.append(Planned(cell, None if reason else artifact))
    return planned


def _batch_beyond(artifact: Artifact | None, batch: int) -> str | None:
    """Why a file cannot take a batch; None if it can."""
    if artifact is None or artifact.batches is None or artifact.batches[0] <= batch <= artifact.batches[1]:
        return None
    return f"{artifact.path.name} takes {artifact.batches[0]} to {artifact.batches[1]} images at once"


def _useful(artifacts: Sequence[Artifact]) -> list[str]:
    kinds = {artifact.kind for artifact in artifacts}
    gpu = no_gpu_because() is None
    return [
        name
        for name, facts in RUNNERS.items()
        if facts.takes in kinds and not facts.peer and (gpu or not facts.gpu)
    ]


def _for_runner(
    artifacts: Sequence[Artifact], runner: str, precision: Precision
) -> tuple[Artifact | None, str | None]:
    """The file that a runner takes in a precision, or why there is none."""
    facts = RUNNERS[runner]
    fitting = [a for a in artifacts if a.kind == facts.takes and a.model.precision == precision]
    where = "tensorrt" if facts.gpu else "cpu"
    if facts.takes == "onnx" and precision == "int8":
        others = fitting
        fitting = [artifact for artifact in fitting if artifact.target == where]
        if others and not fitting:
            return None, (
                f"the int8 file is for {others[0].target}, and int8 graphs differ: "
                f"swav-tf export --precision int8 --target {where}"
            )
    if fitting:
        return fitting[0], None
    missing = {
        "onnx": f"no {precision} .onnx file was given: swav-tf export --precision {precision}",
        "engine": f"no {precision} engine was given: swav-tf export --to tensorrt --precision {precision}",
        "run": "Keras runs run folders, and none was given",
    }
    return None, missing[facts.takes]


# === Facts ===


def _onnx(path: Path) -> Artifact:
    from evaluate.benchmark.roofline import count_work
    from evaluate.runners.onnx_runner import OnnxRunner

    runner = OnnxRunner(path)
    facts = runner.metadata
    quantisation: dict[str, Any] = facts.quantisation or {}
    model = Model(
        name=_name(path),
        kind="onnx",
        file=str(path),
        precision=facts.precision,
        bytes=sum(file.stat().st_size for file in _files_of(path, facts)),
        file_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        weights_sha256=facts.weights_sha256,
        recipe=facts.recipe,
        step=facts.step,
        side=runner.view.crop,
        gflop_per_image=round(count_work(path).flops / 1e9, 9),
        accuracy=_accuracy(path),
    )
    return Artifact(model, path, "onnx", quantisation.get("target") if facts.precision == "int8" else None)


def _engine(path: Path) -> Artifact:
    from evaluate.runners.engine_file import read_facts

    engine = read_facts(path)
    facts = engine.metadata(path)
    model = Model(
        name=_name(path),
        kind="engine",
        file=str(path),
        precision=facts.precision,
        bytes=path.stat().st_size,
        file_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        weights_sha256=facts.weights_sha256,
        recipe=facts.recipe,
        step=facts.step,
        side=facts.preprocessing.crop,
        accuracy=_accuracy(path),
    )
    return Artifact(model, path, "engine", None, (engine.profile.min, engine.profile.max))


def _run_folder(path: Path) -> Artifact:
    from swav_tf.recipe_files import load_recipe
    from swav_tf.training.checkpoint import CheckpointStore

    store = CheckpointStore(path / "checkpoints", kind="pretrain")
    if not store.steps():
        raise UsageError(f"{path} has no checkpoint yet: let `swav-tf pretrain` write one.")
    step = store.steps()[-1]
    checkpoint = store.read(step)
    recipe = load_recipe(path / "config.yaml")
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
    return Artifact(model, path, "run", None)


def _files_of(path: Path, facts: OnnxMetadata) -> list[Path]:
    """The file, and that of its weights where they are apart."""
    return [path, *([] if facts.weights_file is None else [path.with_name(facts.weights_file.name)])]


def _name(path: Path) -> str:
    """What the files of one export share."""
    return path.resolve().parent.name


def _accuracy(path: Path) -> Accuracy | None:
    """What `swav-tf verify` wrote beside a file."""
    try:
        document = json.loads((path.parent / PARITY).read_text(encoding="utf-8"))
        facts = document["files"][path.name]
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
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, KeyError) and error.args[0] == path.name:
            return None  # verified without this file
        raise DataError(
            f"{path.parent / PARITY} must be by `swav-tf verify`; it cannot be read: {error!r}. "
            "Remove it, or verify anew."
        ) from error


def _with_runs_named(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """A run folder bears the name of its own export, if that is here: they are one model."""
    names: dict[str, str] = {}
    for artifact in artifacts:
        if artifact.kind != "run":
            names.setdefault(artifact.model.weights_sha256, artifact.model.name)
    return [
        replace(
            artifact, model=artifact.model.model_copy(update={"name": names[artifact.model.weights_sha256]})
        )
        if artifact.kind == "run" and artifact.model.weights_sha256 in names
        else artifact
        for artifact in artifacts
    ]


def _refuse_twins(artifacts: Sequence[Artifact]) -> None:
    """Two files that the same cell could mean."""
    seen: dict[tuple[str, str, str, str | None], Path] = {}
    for artifact in artifacts:
        key = (artifact.model.name, artifact.kind, artifact.model.precision, artifact.target)
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
        if artifact.kind != "run" or artifact.model.name == artifact.path.resolve().name:
            place = artifact.path.resolve() if artifact.kind == "run" else artifact.path.resolve().parent
            folders.setdefault(artifact.model.name, set()).add(place)
    for name, places in folders.items():
        if len(places) > 1:
            raise UsageError(
                f"Models are told apart by the names of their folders, which must differ. Received: {name} in "
                f"{', '.join(sorted(map(str, places)))}."
            )
