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
