"""The demo: SwAV on handwritten digits, held against random features and raw pixels."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cli.demo_export import DemoExport, export_and_measure, missing_packages, write_demo_page
from cli.demo_picture import draw_demo
from cli.tables.benchmark import print_benchmark
from evaluate.linear import linear_accuracy
from swav_tf.data.decode import evaluation_view
from swav_tf.data.sources import ImageSource, open_source, read_image
from swav_tf.knn import knn_accuracy
from swav_tf.recipe.files import load_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.folder import RunFolder
from swav_tf.training.build import build_swav
from swav_tf.training.features import extract_features
from swav_tf.training.pretrain import pretrain

NEIGHBOURS = 20


def run_demo(*, run_dir: Path, seed: int = 31, export: bool = True, quiet: bool = False) -> dict[str, Any]:
    """Trains on the training digits, measures on the test digits, draws a picture; then exports, and shows all of it.

    An interrupted demo goes on; one that ended is kept aside and done anew.

    Args:
        run_dir: gets the run, summary.json and demo.png; with `export` also exported/, benchmark.json and demo.html.
        seed: of weights, order and crops.
        export: whether to go on after the picture.
        quiet: print nothing.

    Returns:
        What summary.json holds.
    """
    began = time.perf_counter()
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    recipe = load_recipe("demo", [f"train.seed={seed}"])
    earlier = RunFolder(run_dir).read_summary()
    ended = earlier is not None and "export" in earlier  # else it was interrupted, perhaps while measuring
    result = pretrain(recipe, run_dir=run_dir, fresh=ended, quiet=quiet)

    console.print("measuring features of the test digits")
    measured = _measure(result.model, recipe)
    random_init, pixels, learnt = measured.accuracies.values()
    losses, knn = _curves(run_dir / "metrics.jsonl", result.summary["steps"] / recipe.train.epochs)
    picture = run_dir / "demo.png"
    draw_demo(
        picture,
        losses=losses,
        ln_k=math.log(recipe.model.prototypes),
        knn=knn,
        accuracies=measured.accuracies,
        scores=measured.scores,
        images=measured.train_images,
    )
    summary = {
        **result.summary,
        "seed": seed,
        "knn_top1": learnt[0],
        "knn_top1_random_init": random_init[0],
        "knn_top1_raw_pixels": pixels[0],
        "linear_top1": learnt[1],
        "linear_top1_random_init": random_init[1],
        "linear_top1_raw_pixels": pixels[1],
        "seconds_pretrain": result.summary["seconds"],
        "seconds": round(time.perf_counter() - began, 2),
    }
    RunFolder(run_dir).write_summary(summary)
    _print_table(console, measured.accuracies, summary)
    console.print(f"picture   {picture}\nsummary   {run_dir / 'summary.json'}")
    exported = _export(run_dir, measured, console) if export else None
    if exported is not None:
        page = run_dir / "demo.html"
        write_demo_page(
            page, picture=picture, accuracies=measured.accuracies, summary=summary, exported=exported
        )
        if not quiet:
            print_benchmark(exported.benchmark)
        console.print(f"report    {page}\n          {page.absolute().as_uri()}")
    summary["export"] = None if exported is None else exported.summary()
    summary["seconds"] = round(time.perf_counter() - began, 2)
    RunFolder(run_dir).write_summary(summary)
    return summary


@dataclass(frozen=True)
class _Measured:
    """What the features are worth.

    Attributes:
        accuracies: (k-NN, linear) accuracy of the test digits, 0 to 1: random initialisation, raw pixels, SwAV.
        scores: (n, K) of the training digits and the prototypes.
        train_images: uint8 (n, side, side, 3), as the model sees them.
        test_images, test_labels: likewise.
    """

    accuracies: dict[str, tuple[float, float]]
    scores: np.ndarray
    train_images: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def _measure(model: Any, recipe: Recipe) -> _Measured:
    """Classifies the test digits by the training digits, with each kind of features."""
    train, test = open_source(recipe.data), open_source(recipe.data, validation=True)
    labels, test_labels = _labels(train), _labels(test)
    train_images, test_images = _images(train, recipe), _images(test, recipe)
    swav = _features(model, train, recipe), _features(model, test, recipe)
    untrained = build_swav(recipe)
    kinds = {
        "random\ninitialisation": (_features(untrained, train, recipe), _features(untrained, test, recipe)),
        "raw\npixels": (_pixels(train_images), _pixels(test_images)),
        "SwAV": swav,
    }
    accuracies = {
        name: (
            knn_accuracy(known, labels, asked, test_labels, k=NEIGHBOURS),
            linear_accuracy(known, labels, asked, test_labels),
        )
        for name, (known, asked) in kinds.items()
    }
    scores = model.project(swav[0])[1].numpy()
    return _Measured(accuracies, scores, train_images, test_images, test_labels)


def _export(run_dir: Path, measured: _Measured, console: Console) -> DemoExport | None:
    """The demo's second half; None, and a word about it, where its packages are not installed."""
    if missing := missing_packages():
        console.print(
            f"Export and benchmark are skipped: {', '.join(missing)} not installed. "
            "For them: pip install 'swav-tf\\[train,export]'"
        )
        return None
    return export_and_measure(run_dir, measured.test_images, measured.test_labels, tell=console.print)


def _labels(source: ImageSource) -> np.ndarray:
    return np.array([source.label(i) for i in range(len(source))])


def _images(source: ImageSource, recipe: Recipe) -> np.ndarray:
    return np.stack(
        [evaluation_view(read_image(source, i), recipe.data.evaluation) for i in range(len(source))]
    )


def _features(model: Any, source: ImageSource, recipe: Recipe) -> np.ndarray:
    return extract_features(model, source, range(len(source)), recipe.data)


def _pixels(images: np.ndarray) -> np.ndarray:
    # The three channels are equal.
    return images[..., 0].reshape(len(images), -1) / np.float32(255)


def _curves(
    path: Path, steps_per_epoch: float
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]

    def points(kind: str, key: str) -> list[tuple[float, float]]:
        return [(line["step"] / steps_per_epoch, line[key]) for line in lines if line["kind"] == kind]

    return points("step", "loss"), points("knn", "knn_top1")


def _print_table(
    console: Console, accuracies: dict[str, tuple[float, float]], summary: dict[str, Any]
) -> None:
    table = Table(title="Accuracy on 360 test digits", title_justify="left")
    table.add_column("features")
    table.add_column(f"{NEIGHBOURS}-NN", justify="right")
    table.add_column("linear classifier", justify="right")
    for name, (knn, linear) in accuracies.items():
        table.add_row(name.replace("\n", " "), f"{100 * knn:.1f} %", f"{100 * linear:.1f} %")
    console.print(table)
    console.print(
        f"loss {summary['loss_first']:.2f} -> {summary['loss_last']:.2f}, ln K {summary['ln_k']:.2f}; "
        f"{summary['seconds']:.0f} s in all, {summary['seconds_pretrain']:.0f} s of them training"
    )
