"""The last lines of a training command: the time, the result, and the next commands, ready to copy."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cli.options import Report
    from swav_tf.recipe.classifier import ClassifierRecipe
    from swav_tf.recipe.data import Data
    from swav_tf.recipe.pretraining import Recipe
    from swav_tf.training.job import Result

Command = Sequence[str | Path]


def show_result(report: Report, recipe: Recipe | ClassifierRecipe, result: Result[Any]) -> None:
    """Print the summary as JSON, or the closing words."""
    if report.as_json:
        report.show(result.summary)
    elif result.is_chief:
        words: Callable[..., str] = _after_pretraining if recipe.kind == "pretrain" else _after_classifying
        text = words(recipe, Path(result.run_dir), result.summary)
        click.echo(text.partition("\nNext:\n")[0] if report.quiet else text, err=True)


def _after_pretraining(recipe: Recipe, run_dir: Path, summary: dict[str, Any]) -> str:
    loss = "not finite"
    if summary["loss_last"] is not None:
        loss = f"{summary['loss_first']:.2f} -> {summary['loss_last']:.2f} (mean of the last epoch)"
    result = f"{summary['steps']:,} steps, loss {loss}, ln K {summary['ln_k']:.2f}"
    if summary.get("knn_top1") is not None:
        from swav_tf.knn import comparison

        result += f"\n{comparison(summary)}"
    elif summary.get("view_retrieval") is not None:
        from swav_tf.knn import view_comparison

        result += f"\n{view_comparison(summary)}"
    report: Command = ["report", run_dir]
    features: Command = ["features", "--model", run_dir, "--output", run_dir / "train.npz"]
    probe: Command = ["probe", "--model", run_dir]
    export: Command = ["export", run_dir, "--output", run_dir / "exported"]
    if knows_validation_images(recipe.data):
        return _words(run_dir, summary, result, [report, features, probe, export])
    labels = (
        "To measure the features on labeled images:\n"
        f"  swav-tf probe TRAIN VALIDATION --model {shlex.quote(str(run_dir))}"
    )
    return f"{_words(run_dir, summary, result, [report, features, export])}\n{labels}"


def _after_classifying(recipe: ClassifierRecipe, run_dir: Path, summary: dict[str, Any]) -> str:
    results = []
    for name in ("initial", "last", "best"):
        if figures := summary.get(name):
            what = f"{name} epoch ({figures['epoch']}): " if "epoch" in figures else ""
            what = "probe at the start: " if name == "initial" else what
            results.append(f"{what}top-1 {100 * figures['top1']:.2f} %, top-5 {100 * figures['top5']:.2f} %")
    commands: list[Command] = [["validate", run_dir]]
    if "best" in summary and summary["best"] != summary["last"]:
        commands.append(["validate", run_dir, "--best"])
    if recipe.data.validation_path is not None:
        commands.append(
            ["predict", run_dir, recipe.data.validation_path, "--output", run_dir / "predictions.csv"]
        )
    commands.append(["export", run_dir, "--output", run_dir / "exported"])
    data, pretraining = recipe.data, summary["origin"].get("run")
    images = [data.path, data.validation_path] if data.path and data.validation_path else []
    if recipe.kind == "probe" and pretraining and (images or data.kind == "digits"):
        subset = ["--subset", recipe.subset] if recipe.subset else []
        commands.append(["finetune", *images, "--model", pretraining, *subset])
    count = f"{summary['validation_images']:,} validation images"
    return _words(run_dir, summary, f"{'; '.join(results)} of {count}", commands)


def knows_validation_images(data: Data) -> bool:
    """Return whether the settings name labeled images both to train a classifier and to validate it."""
    if data.kind == "digits":
        return True
    if data.path is None or data.unlabeled:
        return False
    return data.validation_path is not None or (
        data.kind in ("tfds", "tar", "parquet") and data.validation_split is not None
    )


def _words(run_dir: Path, summary: dict[str, Any], result: str, commands: Sequence[Command]) -> str:
    took = timedelta(seconds=round(summary["seconds"]))
    lines = [f"  swav-tf {shlex.join(map(str, command))}" for command in commands]
    return "\n".join([f"Done in {took}: {run_dir}", result, "Next:", *lines])
