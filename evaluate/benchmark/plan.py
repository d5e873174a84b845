"""Find the models to measure, and plan the cells: which runner takes which file, and why it cannot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

from evaluate.backends import is_run_folder
from evaluate.backends.checksums import PARITY
from evaluate.backends.engine_file import SUFFIXES, read_facts
from evaluate.backends.foreign import weight_files
from evaluate.backends.onnx_metadata import OnnxMetadata, Precision
from evaluate.benchmark.runners import RUNNERS, why_unavailable
from evaluate.benchmark.schema import NOT_YET, Accuracy, Cell, Model
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import file_sha256
from swav_tf.plumbing.log import log
from swav_tf.plumbing.nvidia import no_gpu_reason

PRECISIONS: Final = get_args(Precision)


def find_models(paths: Sequence[Path], *, damaged: list[Path] | None = None) -> list[Model]:
    """Return the models in folders from `swav-tf export`, single ONNX files, also third-party ones, and run folders.

    With a list `damaged`, files in folders that cannot be opened are logged and added to it.
    """
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
            try:
                found[file.resolve()] = _onnx(file) if file.suffix == ".onnx" else _engine(file)
            except (DataError, UsageError) as error:
                if damaged is None or file == path:
                    raise
                log.error("%s", error)
                damaged.append(file)
    models = _name_runs(_name_twins(list(found.values())))
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

    recipe, store, step = newest_checkpoint(path)
    checkpoint = store.read(step)
    weights = ("backbone/", "head/", "prototypes/")  # the other arrays are the optimizer's, and the queue
    return Model(
        name=path.resolve().name,
        kind="run",
        file=str(path),
        precision="fp32",
        bytes=sum(array.nbytes for name, array in checkpoint.arrays.items() if name.startswith(weights)),
        file_sha256=checkpoint.facts["sha256"],
        weights_sha256=checkpoint.facts["sha256"],
        recipe=recipe.name,
        step=step,
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
        return Accuracy(
            **same,
            relative_error=max(facts["relative_error"].values(), default=None),
            runner=facts.get("runner"),  # older files lack it
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is not a readable result of `swav-tf verify`: {error!r}. Remove it, or verify again."
        ) from error


# === Names ===


def _name_twins(models: Sequence[Model]) -> list[Model]:
    """Name third-party files of one name and precision by their folders too."""
    counts = Counter((model.name, model.kind, model.precision, model.target) for model in models)

    def name_of(model: Model) -> str:
        path = Path(model.file).resolve()
        is_twin = counts[model.name, model.kind, model.precision, model.target] > 1
        return f"{path.parent.name}/{path.stem}" if is_twin and path.stem == model.name else model.name

    # The name of a run is that of its folder.
    return [m if m.kind == "run" else m.model_copy(update={"name": name_of(m)}) for m in models]


def _name_runs(models: Sequence[Model]) -> list[Model]:
    """Give a run folder the name of its export, if that is measured too: they are one model, and others are not."""
    exports = {model.weights_sha256: model.name for model in reversed(models) if model.kind != "run"}

    def name_of(model: Model) -> str:
        if model.kind != "run":
            return model.name
        other = f"{model.name} (run)" if model.name in exports.values() else model.name
        return exports.get(model.weights_sha256, other)

    names = map(name_of, models)
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


# === Cells ===


def plan_cells(
    models: Sequence[Model],
    *,
    runners: Sequence[str] | None,
    precisions: Sequence[str] | None,
    batches: Sequence[int],
) -> list[Cell]:
    """Return all cells, runner by runner, each skipped: because it is not measured yet, or for another reason.

    Without `runners` all that can run a model here are taken, without `precisions` all that a model has.
    """
    if unknown := set(precisions or ()) - set(PRECISIONS):
        known = ", ".join(PRECISIONS)
        raise UsageError(f"--precision must be one of {known}. Received: {', '.join(sorted(unknown))}.")
    cells = []
    for runner in runners or _useful_runners(models):
        unavailable = why_unavailable(runner)
        for name in dict.fromkeys(model.name for model in models):
            files = [model for model in models if model.name == name]
            available = sorted({model.precision for model in files}, key=PRECISIONS.index)
            for precision in precisions or available:
                if runner == "keras" and precision != "fp32":
                    continue
                model, missing = _file_for(files, runner, precision)
                if model is None and not runners and not precisions:
                    continue  # not requested
                for batch in batches:
                    reason = unavailable or missing or _outside_profile(model, batch) or NOT_YET
                    file = None if model is None else model.file
                    settings = {"precision": precision, "batch": batch, "file": file, "reason": reason}
                    cells.append(Cell(model=name, runner=runner, status="skipped", **settings))
    return cells


def _useful_runners(models: Sequence[Model]) -> list[str]:
    """Return the runners of these kinds of models; without a GPU not those of ONNX files, which run on the CPU too."""
    kinds, has_gpu = {model.kind for model in models}, no_gpu_reason() is None
    fitting = [(name, facts) for name, facts in RUNNERS.items() if facts.takes in kinds]
    return [name for name, facts in fitting if has_gpu or not facts.gpu or facts.takes != "onnx"]


def _file_for(models: Sequence[Model], runner: str, precision: str) -> tuple[Model | None, str | None]:
    """Return the file a runner takes in a precision, and why it cannot."""
    facts = RUNNERS[runner]
    fitting = [model for model in models if model.kind == facts.takes and model.precision == precision]
    if not fitting:
        return None, {
            "onnx": f"no {precision} .onnx file was given: swav-tf export --precision {precision}",
            "engine": f"no {precision} engine was given: swav-tf export --to tensorrt --precision {precision}",
            "run": "Keras runs run folders, and none was given",
        }[facts.takes]
    target = "tensorrt" if facts.gpu else "cpu"
    # None: of a third-party file, or any other precision than int8.
    suitable = [model for model in fitting if model.target in (target, None)]
    if not suitable:
        return fitting[0], (
            f"the int8 file is for {fitting[0].target}, and int8 graphs differ: "
            f"swav-tf export --precision int8 --target {target}"
        )
    return suitable[0], None


def _outside_profile(model: Model | None, batch: int) -> str | None:
    """Return why a file cannot take a batch, None if it can."""
    if model is None or model.batches is None or model.batches[0] <= batch <= model.batches[1]:
        return None
    return f"{model.file.rpartition('/')[2]} takes {model.batches[0]} to {model.batches[1]} images per call"
