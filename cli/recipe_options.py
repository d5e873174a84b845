"""The options that choose a recipe: -c and -o, and what follows from the images."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import Option, option_group
from swav_tf.plumbing.log import log
from swav_tf.plumbing.values import comma_list

if TYPE_CHECKING:
    from swav_tf.recipe.data import Data
    from swav_tf.recipe.pretraining import Recipe

_PERHAPS_LABELED = ("list", "tar", "parquet")
# Settings of `data` that name the images.
_PLACE = ("kind", "path", "split", "labels", "image_key", "label_key")

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
    """Return `-c`; `settings` as click takes them."""
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
    """Return the overrides that make a recipe follow images of another kind than its own, unless -o sets the kind.

    Args:
        data: the recipe's settings.
        path: of the images on the command line; None: those of the recipe.
        overrides: of the command line.
        name: of the recipe, for the message.
        knn: whether the recipe has a k-NN, which needs labels.
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
    kind, why = found
    # A recipe may take class folders for plain images; the other way round there are no labels.
    if (
        found == NOT_FOUND
        or kind in (data.kind, "digits")
        or (data.kind, kind) == ("images", "class_folders")
    ):
        return []
    changed = [f"data.kind={kind}"]
    if data.validation_split and "data.validation_split" not in given:
        changed.append("data.validation_split=null")
    note = "" if data.kind == "auto" else f"; recipe '{name}' has {data.kind}"
    settings = data.model_copy(update={"kind": kind, "path": place})
    if knn and (settings.unlabeled or (kind in _PERHAPS_LABELED and not open_source(settings).class_names)):
        changed.append("monitor.knn_every_epochs=0")
        note = f", without labels and so without k-NN{note}"
    log.info(f"{place} is read as {kind} ({why}){note}.")
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

    @property
    def is_auto(self) -> bool:
        """Return whether the recipe is chosen for the images; a file of that name takes precedence."""
        return self.config == "auto" and not Path("auto").is_file()

    def load_for(self, run_dir: Path | None = None, *, fresh: bool = False) -> Recipe:
        """Load the recipe, and for `auto` the recipe of the run in the folder or one chosen for the images."""
        if not self.is_auto:
            return self.load_with_images()
        folder = run_dir or (Path("runs") / f"auto-{Path(self.data).name}" if self.data else None)
        if folder is not None and not fresh and self._continues(folder):
            # What was chosen depends on the speed of this machine: a run resumes with its own settings.
            saved = RecipeChoice(self.data, str(folder / "config.yaml"), self.overrides)
            return saved.load_with_images()
        recipe, lines = self.choose()
        for line in lines:
            log.info("%s", line)
        return recipe

    def _continues(self, folder: Path) -> bool:
        """Return whether a folder has a run to resume, and not only the recipe for others of the same name."""
        from swav_tf.recipe.files import load_any_recipe

        config = folder / "config.yaml"
        if self.data is None or not config.is_file() or (folder / "checkpoints").is_dir():
            return config.is_file()
        path = load_any_recipe(config).data.path
        return path is None or os.path.abspath(path) == os.path.abspath(self.data)

    def choose(self) -> tuple[Recipe, tuple[str, ...]]:
        """Choose a recipe for the images on this machine; return it with the reasons."""
        from swav_tf.data.survey import survey, this_machine
        from swav_tf.recipe.advice import check_recipe
        from swav_tf.recipe.auto import choose
        from swav_tf.recipe.data import Data
        from swav_tf.recipe.files import recipe_of
        from swav_tf.recipe.pretraining import Recipe

        given = dict(item.split("=", 1) for item in self.overrides if "=" in item)
        data = {key: given[f"data.{key}"] for key in _PLACE if f"data.{key}" in given}
        data |= {"path": self.data} if self.data else {}
        if data.get("path") is None and data.get("kind") != "digits":
            raise click.UsageError("Pass DATA, the images to choose a recipe for, or a recipe: -c NAME.")
        size = given.get("train.batch_size", "")
        facts = survey(Data.model_validate(data))
        choice = choose(facts, this_machine(), int(size) if size.isdecimal() else None)
        recipe = recipe_of(dict(choice.settings), self.overrides, label="recipe 'auto'")
        assert isinstance(recipe, Recipe)
        check_recipe(recipe)
        changed = f"  changed by -o: {' '.join(self.overrides)}; the lines above are what auto chose"
        return recipe, (*choice.lines, *([changed] if self.overrides else []))

    def load_with_images(self) -> Recipe:
        """Do the same, and require that the recipe or DATA names the images."""
        recipe = self.load()
        if recipe.data.path is None and recipe.data.kind != "digits":
            raise click.UsageError(
                f"recipe '{recipe.name}' does not specify where the images are (data.kind is {recipe.data.kind}). "
                "Pass DATA, or -o data.path=..."
            )
        return recipe


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
    help=f"Trackers that receive metrics, recipe and pictures: {', '.join(TRACKERS)}, separated by commas.",
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
