"""The linear probe: a classifier on a frozen backbone, by SGD on crops or on features that are computed once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Unpack

import tensorflow as tf
from rich.console import Console
from rich.markup import escape

from swav_tf.data.bad_images import BadImages
from swav_tf.data.labels import open_labelled
from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.classifier import ProbeRecipe
from swav_tf.runs.checkpoint import CheckpointStore
from swav_tf.runs.folder import RunFolder
from swav_tf.runs.model_facts import BY_CACHE, ModelFacts, save_facts
from swav_tf.training.classifier_folder import (
    build_classifier,
    put_weights,
    start_from,
    write_results,
)
from swav_tf.training.classify import ClassifierResult, RunOptions, train_classifier
from swav_tf.training.cluster import build_strategy
from swav_tf.training.features import extract_features
from swav_tf.training.job import failures_explained, versions
from swav_tf.training.logistic import best_penalty, choose_penalty, fit_path
from swav_tf.training.state import named_variables
from swav_tf.training.validation import counts_of, tally


def probe(recipe: ProbeRecipe, **options: Unpack[RunOptions]) -> ClassifierResult:
    """Trains a classifier on a pretraining run's frozen backbone (docs/algorithm.md, "Linear probe").

    The backbone is in inference mode, has no gradient and keeps its moving averages.

    Args:
        recipe: all settings.
        **options: `model`, `run_dir` and the others of `RunOptions`.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
        SwavError: the run diverged, was stopped, or ran out of memory; checkpoints are kept.
    """
    return train_classifier(recipe, **options)


def probe_cached(
    recipe: ProbeRecipe,
    *,
    model: Path | str,
    run_dir: Path | str,
    from_scratch: bool = False,
    fresh: bool = False,
    quiet: bool = False,
) -> ClassifierResult:
    """Logistic regression on features of the evaluation view, computed once; one process, one device.

    The penalty is chosen from the recipe's on a held-out part of the TRAINING images, then all of
    them are learnt from. Crops, optimiser and epochs of the recipe play no part. Training features
    stay in memory: 10.5 GB for ImageNet's 1.28 million of 2048.

    Args:
        recipe: images, view, seed, precision and `cached`.
        model: run folder of the pretraining; with `from_scratch` a recipe will do.
        run_dir: folder of this run.
        from_scratch: the backbone's weights are drawn at random, for comparison.
        fresh: what is in the folder is moved into `previous-N/` there.
        quiet: print nothing but warnings.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
    """
    started = time.perf_counter()
    build_strategy(recipe.train.model_copy(update={"strategy": "one_device"}))
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    start = start_from(model, from_scratch=from_scratch)
    data = open_labelled(recipe)
    check_recipe(recipe, replicas=1)
    class_count, settings = len(data.class_names), recipe.cached
    bad_images = BadImages(None, images=len(data.train), max_share=0)

    with RunFolder(Path(run_dir)) as folder:
        folder.check_kind(recipe)
        if fresh and (aside := folder.set_aside()):
            console.print(f"the earlier run is kept in {aside}")
        if mended := folder.save_recipe(recipe):
            console.print(f"[yellow]warning[/] {escape(mended)}")
        save_facts(folder, ModelFacts.of(start.recipe, start.origin, data, BY_CACHE))
        classifier = build_classifier(recipe, start.recipe, class_count)
        if start.weights is not None:
            put_weights(classifier, start.weights)
        with failures_explained(recipe.train, 1, bad_images):
            console.print(
                f"features of {len(data.train):,} training and {len(data.validation):,} validation images"
            )
            known = extract_features(classifier, data.train, range(len(data.train)), recipe.data)
            asked = extract_features(classifier, data.validation, range(len(data.validation)), recipe.data)
        extracted = time.perf_counter()

        held_out = choose_penalty(
            known,
            data.train_labels,
            class_count=class_count,
            penalties=settings.penalties,
            held_out_share=settings.held_out_share,
            seed=recipe.train.seed,
            max_iterations=settings.max_iterations,
        )
        chosen = best_penalty(held_out)
        for penalty, accuracy in held_out.items():
            mark = "  <- chosen" if penalty == chosen else ""
            console.print(
                f"penalty {penalty:g}: top-1 {100 * accuracy:.2f} % of the held-out training images{mark}"
            )
        if len(held_out) > 1 and chosen in (min(held_out), max(held_out)):
            console.print(
                f"[yellow]warning[/] cached.penalties: the best one, {chosen:g}, is the last of the grid; a better one "
                "may lie beyond it. Add some there."
            )
        [found] = fit_path(
            known,
            data.train_labels,
            class_count=class_count,
            penalties=[chosen],
            max_iterations=settings.max_iterations,
        ).values()
        classifier.classifier.set_weights([found.kernel, found.bias])
        store = CheckpointStore(folder.checkpoints, kind=recipe.kind)
        store.write(
            0,
            {name: variable.numpy() for name, variable in named_variables(classifier).items()},
            {"how": BY_CACHE, "recipe": recipe.model_dump(mode="json")},
        )

        logits = classifier.classifier(asked)
        counts = counts_of([value.numpy() for value in tally(logits, tf.constant(data.validation_labels))])
        last = counts.as_dict()
        summary = {
            "recipe": recipe.name,
            "kind": recipe.kind,
            "how": BY_CACHE,
            "origin": start.origin,
            "last": last,
            "penalty": chosen,
            "held_out_top1": {f"{penalty:g}": accuracy for penalty, accuracy in held_out.items()},
            "classes": class_count,
            "train_images": len(data.train),
            "validation_images": len(data.validation),
            "seconds_features": round(extracted - started, 2),
            "seconds": round(time.perf_counter() - started, 2),
            "versions": versions(),
        }
        title = f"{recipe.name}, cached features: top-1 {100 * last['top1']:.1f} % of {len(asked):,} images"
        write_results(folder.path, counts, data.class_names, title)
        folder.write_summary(summary)
        console.print(f"top-1 {100 * last['top1']:.2f} %, top-5 {100 * last['top5']:.2f} %")
    return ClassifierResult(model=classifier, run_dir=Path(run_dir), summary=summary)
