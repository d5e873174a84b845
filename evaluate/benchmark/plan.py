"""Plan the cells of a benchmark: which runner takes which file, and why some cells cannot be measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, get_args

from evaluate.backends.onnx_metadata import Precision
from evaluate.benchmark.machine import no_gpu_reason
from evaluate.benchmark.runners import RUNNERS, why_unavailable
from evaluate.benchmark.schema import NOT_YET, Cell, Model
from swav_tf.plumbing.errors import UsageError

PRECISIONS: Final = get_args(Precision)


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
    names = dict.fromkeys(model.name for model in models)
    for runner in _useful_runners(models) if runners is None else runners:
        unavailable = why_unavailable(runner)
        for name in names:
            files = [model for model in models if model.name == name]
            available = sorted({model.precision for model in files}, key=PRECISIONS.index)
            for precision in precisions or available:
                if runner == "keras" and precision != "fp32":
                    continue
                model, missing = _file_for(files, runner, precision)
                if model is None and runners is None:
                    continue
                file = None if model is None else model.file
                for batch in batches:
                    reason = unavailable or missing or _outside_profile(model, batch) or NOT_YET
                    settings = {"precision": precision, "batch": batch, "file": file, "reason": reason}
                    cells.append(Cell(model=name, runner=runner, status="skipped", **settings))
    if runners is None and (left := _left_out(models, cells, precisions)):
        takers = [name for name, facts in RUNNERS.items() if facts.takes in {model.kind for model in left}]
        cells += plan_cells(left, runners=takers, precisions=precisions, batches=batches)
    return cells


def _left_out(
    models: Sequence[Model], cells: Sequence[Cell], precisions: Sequence[str] | None
) -> Sequence[Model]:
    """Return the files without a cell, whose reasons are to be shown; all files if there is no cell at all."""
    used = {cell.file for cell in cells}
    wanted = [model for model in models if precisions is None or model.precision in precisions]
    return [model for model in wanted if model.file not in used] if cells else models


def _useful_runners(models: Sequence[Model]) -> list[str]:
    kinds = {model.kind for model in models}
    gpu = no_gpu_reason() is None
    return [name for name, facts in RUNNERS.items() if facts.takes in kinds and (gpu or not facts.gpu)]


def _file_for(models: Sequence[Model], runner: str, precision: str) -> tuple[Model | None, str | None]:
    """Return the file a runner takes in a precision, or why there is none."""
    facts = RUNNERS[runner]
    fitting = [model for model in models if model.kind == facts.takes and model.precision == precision]
    if facts.takes == "onnx" and precision == "int8":
        target = "tensorrt" if facts.gpu else "cpu"
        # The target of a third-party file is None.
        others, fitting = fitting, [model for model in fitting if model.target in (target, None)]
        if others and not fitting:
            return None, (
                f"the int8 file is for {others[0].target}, and int8 graphs differ: "
                f"swav-tf export --precision int8 --target {target}"
            )
    if fitting:
        return fitting[0], None
    missing = {
        "onnx": f"no {precision} .onnx file was given: swav-tf export --precision {precision}",
        "engine": f"no {precision} engine was given: swav-tf export --to tensorrt --precision {precision}",
        "run": "Keras runs run folders, and none was given",
    }
    return None, missing[facts.takes]


def _outside_profile(model: Model | None, batch: int) -> str | None:
    """Return why a file cannot take a batch, None if it can."""
    if model is None or model.batches is None or model.batches[0] <= batch <= model.batches[1]:
        return None
    return f"{model.file.rpartition('/')[2]} takes {model.batches[0]} to {model.batches[1]} images per call"
