"""The options of `probe` and `finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.options import (
    Option,
    cluster_options,
    fresh_option,
    option_group,
    report_options,
    run_dir_option,
)
from cli.recipe_options import following, override_option, track_option, with_values

if TYPE_CHECKING:
    from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe

    Kind = TypeVar("Kind", ProbeRecipe, FinetuneRecipe)


@dataclass(frozen=True)
class ClassifierChoice:
    """A backbone, labeled images, a recipe and a run folder."""

    train: str | None
    validation: str | None
    model: str
    config: str | None  # None: `probe`, with the images and the view of the pretraining
    overrides: tuple[str, ...]
    track: tuple[str, ...]
    subset: Path | None
    from_scratch: bool
    run_dir: Path | None
    fresh: bool

    def load(self, kind: type[Kind]) -> Kind:
        """Load the recipe and check its settings, before anything large is imported."""
        from swav_tf.recipe.advice import check_recipe
        from swav_tf.recipe.files import load_recipe_of
        from swav_tf.training.tracking import check_installed

        config = self.config or "probe"
        made: tuple[str, ...] = () if self.config else self._settings_of_pretraining()
        plain = load_recipe_of(kind, config, [*made, *self.overrides])
        follow: list[str] = following(plain.data, self.train, self.overrides, name=plain.name)
        overrides = [*made, *follow, *self.overrides, *self.track]
        data_kind = load_recipe_of(kind, config, overrides).data.kind
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
        recipe = load_recipe_of(kind, config, with_values(overrides, given))
        if validation_key is not None:
            for key, what in (("path", "training"), (validation_key, "validation")):
                splits = recipe.data.validation_split if key == "validation_path" else None
                if getattr(recipe.data, key) is None and splits is None:
                    raise click.UsageError(
                        f"recipe '{recipe.name}' does not specify where the {what} images are (data.kind is "
                        f"{data_kind}). Pass TRAIN and VALIDATION, or -o data.{key}=..."
                    )
        check_installed(recipe.monitor.track)
        check_recipe(recipe)  # advice is given by the trainer, which knows the images and devices
        return recipe

    def _settings_of_pretraining(self) -> tuple[str, ...]:
        """Return settings for the images and the view of --model, a run or, with --from-scratch, also a recipe."""
        from swav_tf.recipe.files import load_recipe
        from swav_tf.runs.model_facts import read_pretraining_recipe

        if (Path(self.model) / "config.yaml").exists():
            data = read_pretraining_recipe(Path(self.model)).data
        elif self.from_scratch:
            data = load_recipe(self.model).data
        else:
            raise click.UsageError(
                f"--model must be the folder of a pretraining run, with config.yaml. Received: {self.model}."
            )
        if self.train is not None:
            kind = "tfds" if data.kind == "tfds" else "auto"
            own = {"kind": kind, "path": self.train, "validation_path": None, "labels": None}
            own |= {"validation_split": None} if kind == "auto" else {}
            data = data.model_copy(update=own)
        elif data.kind == "digits" and data.validation_split is None:
            data = data.model_copy(update={"validation_split": "test"})
        return f"data={data.model_dump_json()}", f"crop.size={data.evaluation.crop}"

    def sets(self, *keys: str) -> bool:
        """Return whether -o sets one of these keys, or a section that contains one."""
        given = [override.partition("=")[0].strip() for override in self.overrides]
        return any(key == path or key.startswith(f"{path}.") for path in given for key in keys)

    def arguments(self, name: str) -> dict[str, Any]:
        """Return the arguments of the job; its default folder has this name."""
        folder = Path("runs") / f"{name}_from_scratch" if self.from_scratch else Path(self.model) / name
        return {
            "model": self.model,
            "from_scratch": self.from_scratch,
            "run_dir": self.run_dir or folder,
            "fresh": self.fresh,
        }


best_option = click.option(
    "--best",
    is_flag=True,
    help="Use the weights of the best validated epoch of a probe or fine-tuning run, not those of the last.",
)


def classifier_options(config: Option) -> Option:
    """Add TRAIN, VALIDATION, -c as given, and the other options of both commands."""
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
        config,
        override_option,
        track_option,
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
    return lambda command: choice(cluster_options(report_options(command)))
