"""The options of `probe` and `finetune`, and the job that they describe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.options import (
    cluster_options,
    config_option,
    fresh_option,
    option_group,
    override_option,
    report_options,
    run_dir_option,
    with_values,
)

if TYPE_CHECKING:
    from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe

    Kind = TypeVar("Kind", ProbeRecipe, FinetuneRecipe)


@dataclass(frozen=True)
class ClassifierChoice:
    """A backbone, labelled images, a recipe and a run folder."""

    train: str | None
    validation: str | None
    model: str
    config: str
    overrides: tuple[str, ...]
    subset: Path | None
    from_scratch: bool
    run_dir: Path | None
    fresh: bool

    def load(self, kind: type[Kind]) -> Kind:
        """Load the recipe and check its settings, before anything large is imported."""
        from swav_tf.recipe.advice import check_recipe
        from swav_tf.recipe.files import load_recipe_of

        data_kind = load_recipe_of(kind, self.config, self.overrides).data.kind
        validation_key = {"digits": None, "tfds": "validation_split"}.get(data_kind, "validation_path")
        if self.validation is not None and validation_key is None:
            raise click.UsageError(
                f"the digits are bundled and take no VALIDATION argument. Received: {self.validation}."
            )
        given = {
            "data.path": self.train,
            f"data.{validation_key}": self.validation,
            "subset": None if self.subset is None else str(self.subset),
        }
        recipe = load_recipe_of(kind, self.config, with_values(self.overrides, given))
        if validation_key is not None:
            for key, what in (("path", "training"), (validation_key, "validation")):
                if getattr(recipe.data, key) is None:
                    raise click.UsageError(
                        f"recipe '{recipe.name}' does not specify where the {what} images are (data.kind is "
                        f"{data_kind}). Give TRAIN and VALIDATION, or -o data.{key}=..."
                    )
        check_recipe(recipe)  # advice is given by the trainer, which knows the images and devices
        return recipe

    def arguments(self, name: str) -> dict[str, Any]:
        """Return the arguments of the job; its default folder has this name."""
        folder = Path("runs") / f"{name}_from_scratch" if self.from_scratch else Path(self.model) / name
        return {
            "model": self.model,
            "from_scratch": self.from_scratch,
            "run_dir": self.run_dir or folder,
            "fresh": self.fresh,
        }


def classifier_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add TRAIN, VALIDATION and the options of both commands."""
    choice = option_group(
        "classifier",
        ClassifierChoice,
        click.argument("train", required=False),
        click.argument("validation", required=False),
        click.option(
            "--model",
            required=True,
            metavar="RUN",
            help="Folder of a pretraining run; its newest checkpoint is used.",
        ),
        config_option(),
        override_option,
        click.option(
            "--subset",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Train only on the images listed in FILE, one name per line, such as n01440764_10026.JPEG.",
        ),
        click.option(
            "--from-scratch",
            is_flag=True,
            help="Initialize the backbone at random, for comparison; --model may then be a recipe.",
        ),
        run_dir_option(
            "Folder for checkpoints, metrics and results.",
            show_default="RUN/<name of the recipe>; with --from-scratch, runs/<name>_from_scratch",
        ),
        fresh_option,
    )
    decorated: Callable[..., Any] = choice(cluster_options(report_options(command)))
    return decorated
