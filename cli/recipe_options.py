"""The options of training: -c and -o, which choose a recipe, how it adapts to the images, and those of classifiers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.options import Option, cluster_options, fresh_option, option_group, report_options, run_dir_option
from swav_tf.plumbing.log import log
from swav_tf.plumbing.values import comma_list

if TYPE_CHECKING:
    from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
    from swav_tf.recipe.data import Data
    from swav_tf.recipe.pretraining import Recipe

    Kind = TypeVar("Kind", ProbeRecipe, FinetuneRecipe)

TRACKERS = ("tensorboard", "mlflow", "wandb")

override_option = click.option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, such as train.epochs=10 or crops.0.size=160. May be repeated.",
)


def config_option(**settings: Any) -> Option:
    """Return `-c`; `settings` are click's."""
    usual: dict[str, Any] = {
        "required": True,
        "metavar": "FILE_OR_NAME",
        "help": "Recipe: a YAML file or a name from `swav-tf config list`.",
    }
    return click.option("-c", "--config", **usual | settings)


def with_values(overrides: Sequence[str], values: Mapping[str, str | None]) -> list[str]:
    """Return the overrides, followed by KEY=VALUE for each value that was given; the last one wins."""
    given = {key: value for key, value in values.items() if value is not None}
    return [*overrides, *(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items())]


def following(
    data: Data, path: str | None, overrides: Sequence[str], *, name: str, knn: bool = False
) -> list[str]:
    """Return the overrides that adapt a recipe to images of another kind than its own, unless -o sets the kind.

    Args:
        data: the recipe's settings.
        path: of the images on the command line; None for those of the recipe.
        overrides: on the command line.
        name: of the recipe, for the message.
        knn: whether the recipe measures k-NN accuracy, which needs labels.
    """
    given = {item.partition("=")[0].strip() for item in overrides}
    if "data.kind" in given or (path or data.path) is None or (path is None and data.kind != "auto"):
        return []
    from swav_tf.data.recognition import NOT_FOUND, recognize
    from swav_tf.data.sources import open_source

    place = str(path or data.path)
    if data.kind == "tfds" and not Path(place).exists():
        return []
    found = recognize(place, labels=data.labels)
    if found == NOT_FOUND or found.kind in (data.kind, "digits"):
        return []
    if (data.kind, found.kind) == ("images", "class_folders"):
        return []  # a recipe may take class folders for plain images; the other way round there are no labels
    log.info(f"{place} is read as {found.kind} ({found.why}).")
    settings = data.model_copy(update={"kind": found.kind, "path": place})
    changed = [f"data.kind={found.kind}"]
    if data.validation_split and "data.validation_split" not in given:
        changed.append("data.validation_split=null")
    perhaps_labeled = found.kind in ("list", "tar", "parquet")
    if knn and (settings.unlabeled or (perhaps_labeled and (open_source(settings).labels() < 0).all())):
        changed.append("monitor.knn_every_epochs=0")
        log.info(f"Recipe '{name}' measures k-NN accuracy, which is left out: the images have no labels.")
    return changed


@dataclass(frozen=True)
class RecipeChoice:
    """A pretraining recipe with overrides, and DATA, which takes precedence over its `data.path`."""

    data: str | None
    config: str
    overrides: tuple[str, ...]

    def load(self) -> Recipe:
        """Load the recipe and check that its settings fit together, before anything large is imported."""
        from swav_tf.recipe.advice import check_recipe
        from swav_tf.recipe.files import load_recipe

        plain = load_recipe(self.config, self.overrides)
        knn = plain.monitor.knn_every_epochs > 0
        kind = following(plain.data, self.data, self.overrides, name=plain.name, knn=knn)
        recipe = load_recipe(self.config, [*kind, *with_values(self.overrides, {"data.path": self.data})])
        check_recipe(recipe)  # advice is given by the trainer, which knows the images and devices
        return recipe

    def load_with_images(self) -> Recipe:
        """Load the recipe, and require that it or DATA names the images."""
        recipe = self.load()
        if recipe.data.path is None and recipe.data.kind != "digits":
            raise click.UsageError(
                f"recipe '{recipe.name}' does not specify where the images are (data.kind is {recipe.data.kind}). "
                "Pass DATA, or -o data.path=..."
            )
        return recipe

    @property
    def is_auto(self) -> bool:
        """Return whether the recipe is chosen for the images; a file of that name takes precedence."""
        return self.config == "auto" and not Path("auto").is_file()

    def load_for(self, run_dir: Path | None = None, *, fresh: bool = False, trains: bool = True) -> Recipe:
        """Load the recipe; for `auto` that of the run in the folder, or else choose one for the images.

        What is chosen depends on the speed of this machine, so a run resumes with its own settings. A recipe for other
        images of the same name is not taken, except where the command `trains` on from a checkpoint: images that have
        moved are recognized by their names, and others refused.
        """
        if not self.is_auto:
            return self.load_with_images()
        folder = run_dir
        if folder is None and self.data:
            from swav_tf.recipe.auto import auto_name

            folder = Path("runs") / auto_name(self.data)
        config = None if folder is None else folder / "config.yaml"
        if config is not None and config.is_file() and not fresh:
            saved = RecipeChoice(self.data, str(config), self.overrides)
            if (trains and (config.parent / "checkpoints").is_dir()) or saved._has_images():
                return saved.load_with_images()
        recipe, lines = self.choose()
        for line in lines:
            log.info("%s", line)
        return recipe

    def _has_images(self) -> bool:
        """Return whether the recipe's images are at DATA."""
        from swav_tf.recipe.files import load_any_recipe

        path = load_any_recipe(self.config).data.path
        return None in (self.data, path) or os.path.abspath(str(path)) == os.path.abspath(str(self.data))

    def choose(self) -> tuple[Recipe, tuple[str, ...]]:
        """Choose a recipe for the images on this machine; return it with the reasons."""
        from swav_tf.data.survey import survey, this_machine
        from swav_tf.recipe.advice import check_recipe
        from swav_tf.recipe.auto import choose
        from swav_tf.recipe.files import data_of, recipe_of
        from swav_tf.recipe.pretraining import Recipe

        data = data_of(with_values(self.overrides, {"data.path": self.data}))
        if data.path is None and data.kind != "digits":
            raise click.UsageError("Pass DATA, the images to choose a recipe for, or a recipe: -c NAME.")
        given = dict(item.split("=", 1) for item in self.overrides if "=" in item)
        size = given.get("train.batch_size", "")
        batch = int(size) if size.isdecimal() else None
        machine = this_machine()
        choice = choose(survey(data), machine, batch)
        recipe = recipe_of(dict(choice.settings), self.overrides, label="recipe 'auto'")
        assert isinstance(recipe, Recipe)
        check_recipe(recipe, replicas=None if recipe.train.strategy == "one_device" else machine.gpus)
        changed = f"  changed by -o: {' '.join(self.overrides)}; the lines above are what auto chose"
        return recipe, (*choice.lines, *([changed] if self.overrides else []))


def _track(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Return the overrides that choose trackers."""
    if value is None:
        return ()
    found = comma_list(value)
    if not set(found) <= set(TRACKERS):
        raise click.BadParameter(
            f"must be among {', '.join(TRACKERS)}, separated by commas. Received: {value}"
        )
    others = [name for name in found if name != TRACKERS[0]]
    return f"monitor.tensorboard={json.dumps(TRACKERS[0] in found)}", f"monitor.track={json.dumps(others)}"


track_option = click.option(
    "--track",
    metavar="NAMES",
    callback=_track,
    show_default="tensorboard",
    help=f"Comma-separated trackers to send metrics, recipe and pictures to: {', '.join(TRACKERS)}.",
)
data_argument = click.argument("data", required=False)
recipe_options = option_group("recipe", RecipeChoice, data_argument, config_option(), override_option)
auto_recipe_options = option_group(
    "recipe",
    RecipeChoice,
    data_argument,
    config_option(
        required=False,
        default="auto",
        show_default=True,
        help="Recipe: a YAML file, a name from `swav-tf config list`, or auto: chosen for DATA and this machine.",
    ),
    override_option,
)


# === Classifiers ===


@dataclass(frozen=True)
class ClassifierChoice:
    """A backbone, labeled images, a recipe and a run folder."""

    train: str | None
    validation: str | None
    model: str
    config: str | None  # None: `probe` or `finetune`, with the images and the view of the pretraining
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

        config = self.config or kind.model_fields["kind"].default
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
            pretraining = read_pretraining_recipe(Path(self.model))
        elif self.from_scratch:
            pretraining = load_recipe(self.model)
        else:
            raise click.UsageError(
                f"--model must be the folder of a pretraining run, with config.yaml. Received: {self.model}."
            )
        data = pretraining.data
        if self.train is not None:
            kind = "tfds" if data.kind == "tfds" else "auto"
            own = {"kind": kind, "path": self.train, "validation_path": None, "labels": None}
            own |= {"validation_split": None} if kind == "auto" else {}
            data = data.model_copy(update=own)
        elif data.kind == "digits" and data.validation_split is None:
            data = data.model_copy(update={"validation_split": "test"})
        flips = pretraining.augment.flip_probability
        return (
            f"data={data.model_dump_json()}",
            f"crop.size={data.evaluation.crop}",
            f"crop.flip_probability={flips}",
        )

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
    help="Use the checkpoint with the highest validation accuracy instead of the last one (probe and fine-tuning "
    "runs).",
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
            show_default="RUN/<name of the recipe>, or RUN/probe_cached; with --from-scratch, runs/<name>_from_scratch",
        ),
        fresh_option,
    )
    return lambda command: choice(cluster_options(report_options(command)))
