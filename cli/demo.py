"""The demo: SwAV on handwritten digits or a folder of images, compared with random features and raw pixels."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from cli.tables import benchmark_lines, table
from evaluate.backends import open_model
from evaluate.images import ImageSet
from evaluate.linear import linear_accuracy
from evaluate.run_report import Run, draw_pictures, write_run_report
from swav_tf.data.bad_images import BadImages
from swav_tf.data.sources import open_source
from swav_tf.data.survey import survey, this_machine
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.log import log
from swav_tf.recipe.auto import choose
from swav_tf.recipe.data import Data
from swav_tf.recipe.files import load_recipe, recipe_of
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.folder import RunFolder
from swav_tf.training.build import build_swav
from swav_tf.training.knn_monitor import readable_features, readable_pixels
from swav_tf.training.pretrain import pretrain

SHOWN: Final = 500  # images at most, on the run's page
MEASURED: Final = 10_000  # images at most of each part, as a linear classifier of pixels is slow
FEATURES: Final = {"_random_init": "random initialization", "_raw_pixels": "raw pixels", "": "SwAV"}
EXPORT_PACKAGES: Final = ("onnx", "onnxruntime", "tf2onnx")
BATCHES: Final = {"ort-cpu": (1, 8, 32), "keras": (32,)}  # by runner; processes of Keras take long to start
CELL: Final = {"seconds": 1, "runs": 50, "threads": 0, "cuda_graph": False}


def run_demo(
    *, run_dir: Path, data: Path | None = None, seed: int = 31, export: bool = True, quiet: bool = False
) -> dict[str, Any]:
    """Train on the training images, evaluate on the test images, and write the run's page; return the summary.

    With `export` the model is then exported and timed. The images are the digits, or those of a folder `data` with the
    folders `train` and `test`. An interrupted demo resumes; a finished one is set aside and run again.
    """
    started = time.perf_counter()
    folder = RunFolder(run_dir)
    earlier, saved = folder.read_summary(), run_dir / "config.yaml"
    # Without "export" it was interrupted, perhaps during the evaluation.
    finished = earlier is not None and "export" in earlier
    recipe = _recipe(data, seed, saved if saved.is_file() and not finished else None)
    result = pretrain(recipe, run_dir=run_dir, fresh=finished, quiet=quiet)
    log.info("fitting linear classifiers")
    summary = {
        **result.summary,
        "seed": seed,
        "knn_top1_random_init": result.summary["knn_top1_initial"],
        "knn_top1_raw_pixels": result.summary["knn_top1_pixels"],
        **_linear_accuracies(result.model, recipe),
        "seconds_pretrain": result.summary["seconds"],
    }
    folder.write_summary(summary)
    if not quiet:
        _print(summary)
    page = run_dir / "report.html"
    images = ImageSet(open_source(recipe.data), recipe.data)
    pictures = draw_pictures(recipe, open_model(run_dir), images, limit=SHOWN)
    write_run_report(page, Run.read(run_dir), pictures)
    log.info("page      %s", page.absolute().as_uri())

    summary["export"] = _export(run_dir, quiet=quiet) if export else None
    summary["seconds"] = round(time.perf_counter() - started, 2)
    folder.write_summary(summary)
    return summary


def _recipe(data: Path | None, seed: int, saved: Path | None = None) -> Recipe:
    """Return the recipe for the digits, or one chosen for a folder unless that of an interrupted demo was `saved`."""
    if data is None:
        return load_recipe("demo", [f"train.seed={seed}"])
    train, test = data / "train", data / "test"
    if not (train.is_dir() and test.is_dir()):
        raise UsageError(
            f"--data must have the folders train and test, each with a folder for each class. Received: {data}."
        )
    settings = [f"train.seed={seed}", f"data.validation_path={json.dumps(str(test))}"]
    if saved is not None:  # the choice depends on the speed of the machine at the moment
        # The saved recipe may be that of the digits: then the run folder refuses this one.
        place = ["data.kind=class_folders", f"data.path={json.dumps(str(train))}"]
        return load_recipe(str(saved), [*place, *settings])
    choice = choose(survey(Data(kind="class_folders", path=str(train))), this_machine())
    for line in choice.lines:
        log.info("%s", line)
    recipe = recipe_of(choice.settings, settings)
    assert isinstance(recipe, Recipe)
    return recipe


def _linear_accuracies(model: Any, recipe: Recipe) -> dict[str, float]:
    """Return the accuracy of a linear classifier on the test images, by kind of features."""
    untrained, settings = build_swav(recipe), recipe.data
    sets: list[dict[str, np.ndarray]] = []
    for source in (open_source(settings), open_source(settings, validation=True)):
        chosen = np.sort(np.random.default_rng(0).permutation(len(source))[:MEASURED])
        unreadable = BadImages(images=len(chosen), max_share=settings.max_bad_share)
        features, read = readable_features(model, source, chosen, settings, unreadable)
        sets.append(
            {
                "labels": source.labels(read),
                "_random_init": readable_features(untrained, source, read, settings)[0],
                "_raw_pixels": readable_pixels(source, read, settings)[0],
                "": features,
            }
        )
    train, test = sets
    return {
        f"linear_top1{kind}": linear_accuracy(train[kind], train["labels"], test[kind], test["labels"])
        for kind in FEATURES
    }


def _print(summary: dict[str, Any]) -> None:
    rows = [
        (name, *(f"{100 * summary[f'{how}_top1{kind}']:.1f} %" for how in ("knn", "linear")))
        for kind, name in FEATURES.items()
    ]
    print("Accuracy on the test images")
    print(table(("features", "20-NN", "linear classifier"), rows, left=("features",)))
    print(
        f"loss {summary['loss_first']:.2f} -> {summary['loss_last']:.2f}, ln K {summary['ln_k']:.2f}; "
        f"{summary['seconds_pretrain']:.0f} s of training"
    )


def _export(run_dir: Path, *, quiet: bool) -> dict[str, Any] | None:
    """Export float32 and int8, time them on the CPU, and write benchmark.html; None if packages are missing.

    Raises:
        ExportError: a file does not compute what Keras computes.
    """
    missing = [name for name in EXPORT_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        log.warning(
            f"Export and benchmark are skipped: {names} not installed. Run: pip install 'swav-tf[train,export]'"
        )
        return None
    from evaluate.benchmark.plan import find_models, plan_cells
    from evaluate.benchmark.report import write_report
    from evaluate.benchmark.run import run_benchmark
    from evaluate.benchmark.schema import Settings
    from export.run import export_run
    from export.settings import ExportSettings

    started = time.perf_counter()
    log.info("exporting ONNX in float32 and int8, each compared with Keras")
    files = export_run(run_dir, run_dir / "exported", ExportSettings(precisions=("fp32", "int8")))
    models = find_models([*(file.path for file in files), run_dir])
    cells = [
        cell
        for runner, batches in BATCHES.items()
        for cell in plan_cells(models, runners=(runner,), precisions=None, batches=batches)
    ]
    benchmark = run_benchmark(cells, models, Settings.model_validate(CELL))
    if not benchmark.complete:
        raise KeyboardInterrupt
    page = run_dir / "benchmark.html"
    write_report(page, benchmark)
    if not quiet:
        print(*benchmark_lines(benchmark), sep="\n")
    log.info("page      %s", page.absolute().as_uri())
    sizes = {
        Path(model.file).name: {
            "bytes": model.bytes,
            "knn_top1": model.accuracy.knn,
            "cosine_min": model.accuracy.cosine_min,
        }
        for model in benchmark.models
        if model.accuracy
    }
    speeds = {cell.label: round(cell.best.images_per_second, 1) for cell in benchmark.cells if cell.best}
    seconds = round(time.perf_counter() - started, 2)
    return {"files": sizes, "images_per_second": speeds, "seconds": seconds}
