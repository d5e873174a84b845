"""The demo: SwAV on handwritten digits or a folder of images, compared with random features and raw pixels."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cli.demo_export import DemoExport, export_and_measure, missing_packages, write_demo_page
from cli.tables.benchmark import print_benchmark
from cli.tables.plain import print_table
from evaluate.backends import open_model
from evaluate.images import ImageSet
from evaluate.linear import linear_accuracy
from evaluate.run_report import Run, draw_pictures, write_run_report
from swav_tf.data.decode import evaluation_view
from swav_tf.data.image_source import ImageSource
from swav_tf.data.sources import open_source, read_image
from swav_tf.data.survey import survey, this_machine
from swav_tf.knn import knn_accuracy
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.log import log
from swav_tf.recipe.auto import choose
from swav_tf.recipe.data import Data
from swav_tf.recipe.files import load_recipe, recipe_of
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.folder import RunFolder
from swav_tf.training.build import build_swav
from swav_tf.training.features import extract_features
from swav_tf.training.pretrain import pretrain

NEIGHBOURS = 20
SHOWN = 500  # images at most, on the run's page
MEASURED = 10_000  # images at most of each part, as a linear classifier of pixels is slow


def run_demo(
    *, run_dir: Path, data: Path | None = None, seed: int = 31, export: bool = True, quiet: bool = False
) -> dict[str, Any]:
    """Train on the training images, evaluate on the test images, write the run's page, then export and write another.

    An interrupted demo resumes; a finished one is set aside and run again.

    Args:
        run_dir: receives the run, summary.json and report.html; with `export` also exported/ and demo.html.
        data: folder with the folders `train` and `test` of class folders; None: the digits.
        seed: of weights, order and crops.
        export: whether to continue after report.html.
        quiet: print no progress and no tables.

    Returns:
        The content of summary.json.
    """
    started = time.perf_counter()
    recipe = _recipe(data, seed)
    earlier = RunFolder(run_dir).read_summary()
    # Otherwise it was interrupted, perhaps during the evaluation.
    finished = earlier is not None and "export" in earlier
    result = pretrain(recipe, run_dir=run_dir, fresh=finished, quiet=quiet)

    log.info("computing features of the test images")
    measured = _evaluate(result.model, recipe)
    summary = _summary(result.summary, measured, seed=seed, seconds=time.perf_counter() - started)
    RunFolder(run_dir).write_summary(summary)
    if not quiet:
        _print(measured, summary)
    trained = _write_run_page(run_dir, recipe)
    log.info("page      %s\nsummary   %s", trained, run_dir / "summary.json")

    exported = _export(run_dir, measured) if export else None
    if exported is not None:
        page = run_dir / "demo.html"
        write_demo_page(
            page, trained=trained, accuracies=measured.accuracies, summary=summary, exported=exported
        )
        if not quiet:
            print_benchmark(exported.benchmark)
        log.info("report    %s\n          %s", page, page.absolute().as_uri())
    summary["export"] = None if exported is None else exported.summary()
    summary["seconds"] = round(time.perf_counter() - started, 2)
    RunFolder(run_dir).write_summary(summary)
    return summary


def _recipe(data: Path | None, seed: int) -> Recipe:
    if data is None:
        return load_recipe("demo", [f"train.seed={seed}"])
    train, test = data / "train", data / "test"
    if not (train.is_dir() and test.is_dir()):
        raise UsageError(
            f"--data must have the folders train and test, each with a folder for each class. Received: {data}."
        )
    choice = choose(survey(Data(kind="class_folders", path=str(train))), this_machine())
    for line in choice.lines:
        log.info("%s", line)
    settings = [f"train.seed={seed}", f"data.validation_path={json.dumps(str(test))}"]
    recipe = recipe_of(choice.settings, settings)
    assert isinstance(recipe, Recipe)
    return recipe


@dataclass(frozen=True)
class _Measured:
    """The quality of the features.

    Attributes:
        accuracies: (k-NN, linear) accuracy on the test images, 0 to 1: random initialization, raw pixels, SwAV.
        train_count: number of training images that vote.
        test_images: uint8 (n, side, side, 3), as the model sees them.
        test_labels: (n,).
    """

    accuracies: dict[str, tuple[float, float]]
    train_count: int
    test_images: np.ndarray
    test_labels: np.ndarray


def _evaluate(model: Any, recipe: Recipe) -> _Measured:
    """Classify the test images from the training images, with each kind of features."""
    train, test = open_source(recipe.data), open_source(recipe.data, validation=True)
    labels, test_labels = _labels(train), _labels(test)
    train_images, test_images = _images(train, recipe), _images(test, recipe)
    gray = bool((train_images == train_images[..., :1]).all())
    untrained = build_swav(recipe)
    kinds = {
        "random initialization": (_features(untrained, train, recipe), _features(untrained, test, recipe)),
        "raw pixels": (_pixels(train_images, gray=gray), _pixels(test_images, gray=gray)),
        "SwAV": (_features(model, train, recipe), _features(model, test, recipe)),
    }
    accuracies = {
        name: (
            knn_accuracy(known, labels, queries, test_labels, k=NEIGHBOURS),
            linear_accuracy(known, labels, queries, test_labels),
        )
        for name, (known, queries) in kinds.items()
    }
    return _Measured(accuracies, len(labels), test_images, test_labels)


def _write_run_page(run_dir: Path, recipe: Recipe) -> Path:
    """Write what `swav-tf report` writes."""
    page, images = run_dir / "report.html", ImageSet(open_source(recipe.data), recipe.data)
    pictures = draw_pictures(recipe, open_model(run_dir), images, limit=SHOWN)
    write_run_report(page, Run.read(run_dir), pictures)
    return page


def _summary(
    pretraining: dict[str, Any], measured: _Measured, *, seed: int, seconds: float
) -> dict[str, Any]:
    random_init, pixels, swav = measured.accuracies.values()
    return {
        **pretraining,
        "seed": seed,
        "knn_top1": swav[0],
        "knn_top1_random_init": random_init[0],
        "knn_top1_raw_pixels": pixels[0],
        "linear_top1": swav[1],
        "linear_top1_random_init": random_init[1],
        "linear_top1_raw_pixels": pixels[1],
        "seconds_pretrain": pretraining["seconds"],
        "seconds": round(seconds, 2),
    }


def _export(run_dir: Path, measured: _Measured) -> DemoExport | None:
    """Run the demo's second half; None if its packages are not installed."""
    if missing := missing_packages():
        log.warning(
            "Export and benchmark are skipped: %s not installed. Run: pip install 'swav-tf[train,export]'",
            ", ".join(missing),
        )
        return None
    return export_and_measure(run_dir, measured.test_images, measured.test_labels)


def _chosen(source: ImageSource) -> list[int]:
    """Return the numbers of all images, or of those that are measured, always the same."""
    return sorted(np.random.default_rng(0).permutation(len(source))[:MEASURED].tolist())


def _labels(source: ImageSource) -> np.ndarray:
    return np.array([source.label(i) for i in _chosen(source)])


def _images(source: ImageSource, recipe: Recipe) -> np.ndarray:
    return np.stack([evaluation_view(read_image(source, i), recipe.data.evaluation) for i in _chosen(source)])


def _features(model: Any, source: ImageSource, recipe: Recipe) -> np.ndarray:
    return extract_features(model, source, _chosen(source), recipe.data)


def _pixels(images: np.ndarray, *, gray: bool) -> np.ndarray:
    return images[..., : 1 if gray else 3].reshape(len(images), -1) / np.float32(255)


def _print(measured: _Measured, summary: dict[str, Any]) -> None:
    print(
        f"Accuracy on {len(measured.test_labels):,} test images, by {measured.train_count:,} training images"
    )
    print_table(
        ("features", f"{NEIGHBOURS}-NN", "linear classifier"),
        [
            (name, f"{100 * knn:.1f} %", f"{100 * linear:.1f} %")
            for name, (knn, linear) in measured.accuracies.items()
        ],
        left=("features",),
    )
    print(
        f"loss {summary['loss_first']:.2f} -> {summary['loss_last']:.2f}, ln K {summary['ln_k']:.2f}; "
        f"{summary['seconds']:.0f} s in total, {summary['seconds_pretrain']:.0f} s of them training"
    )
