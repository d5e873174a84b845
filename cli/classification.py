"""What `probe` and `finetune` share: options, the recipe that they ask for, where the run goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.options import (
    cluster_of,
    cluster_options,
    config_option,
    json_option,
    override_option,
    quiet_option,
    run_dir_option,
)
from cli.recipes import with_arguments

if TYPE_CHECKING:
    from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe

    Asked = TypeVar("Asked", ProbeRecipe, FinetuneRecipe)


def classification_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds TRAIN, VALIDATION and the options of both commands."""
    for option in (
        json_option,
        quiet_option,
        cluster_options,
        click.option(
            "--fresh",
            is_flag=True,
            help="Start over; the earlier run is kept in previous-N/.  [default: resume]",
        ),
        run_dir_option(
            "Folder for checkpoints, metrics and results.  [default: the recipe's name, inside "
            "--model's folder; with --from-scratch inside runs/]",
        ),
        click.option(
            "--from-scratch",
            is_flag=True,
            help="Draw the backbone's weights at random, for comparison; --model may then be a recipe.",
        ),
        click.option(
            "--subset",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Train on the images that FILE names, one per line, such as n01440764_10026.JPEG.",
        ),
        override_option,
        config_option,
        click.option(
            "--model",
            required=True,
            metavar="RUN",
            help="Run folder of `swav-tf pretrain`; its newest checkpoint is used.",
        ),
        click.argument("validation", required=False),
        click.argument("train", required=False),
    ):
        command = option(command)
    return command


def asked_for(
    wanted: type[Asked],
    *,
    train: str | None,
    validation: str | None,
    config: str,
    overrides: Sequence[str],
    subset: Path | None,
    model: str,
    from_scratch: bool,
    run_dir: Path | None,
    fresh: bool,
    nodes: int | None,
    node_rank: int | None,
    master: str | None,
    quiet: bool,
    as_json: bool,
    cached: bool = False,
) -> tuple[Asked, dict[str, Any]]:
    """The recipe of the kind that is wanted, and the trainer's other arguments, by what the options say.

    Nothing large is loaded.
    """
    recipe = _recipe(wanted, config, overrides, train=train, validation=validation, subset=subset)
    cluster = cluster_of(nodes, node_rank, master)
    if cached and cluster is not None:
        raise click.UsageError("--cached runs on one machine: leave --nodes, --node-rank and --master out.")
    arguments: dict[str, Any] = {
        "model": model,
        "run_dir": run_dir or _default_folder(recipe.name, model, from_scratch=from_scratch, cached=cached),
        "from_scratch": from_scratch,
        "fresh": fresh,
        "quiet": quiet or as_json,
    }
    return recipe, arguments if cached else {**arguments, "cluster": cluster}


def _recipe(
    wanted: type[Asked],
    config: str,
    overrides: Sequence[str],
    *,
    train: str | None,
    validation: str | None,
    subset: Path | None,
) -> Asked:
    """The recipe, its settings known to work together."""
    from swav_tf.recipe.classifier_advice import check_classifier_recipe
    from swav_tf.recipe.files import load_recipe_of

    kind = load_recipe_of(wanted, config, overrides).data.kind
    of_validation = {"digits": None, "tfds": "validation_split"}.get(kind, "validation_path")
    if validation is not None and of_validation is None:
        raise click.UsageError(f"the digits are bundled and have no VALIDATION. Received: {validation}.")
    given = {
        "data.path": train,
        f"data.{of_validation}": validation,
        "subset": None if subset is None else str(subset),
    }
    recipe = load_recipe_of(wanted, config, with_arguments(overrides, given))
    for place, what in (("path", "training"), (of_validation, "validation")):
        if of_validation is not None and place is not None and getattr(recipe.data, place) is None:
            raise click.UsageError(
                f"recipe '{recipe.name}' does not say where the {what} images are (data.kind is {kind}). "
                f"Give TRAIN and VALIDATION, or -o data.{place}=..."
            )
    check_classifier_recipe(recipe)  # its advice is for when images and devices are known
    return recipe


def _default_folder(name: str, model: str, *, from_scratch: bool, cached: bool) -> Path:
    """Where the run goes unless something else is said: beside nothing that it could be taken for."""
    name = f"{name}_cached" if cached else name
    return Path("runs") / f"{name}_from_scratch" if from_scratch else Path(model) / name
