"""The options that choose a recipe: -c and -o, and what follows from the images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import Option, option_group
from swav_tf.plumbing.log import log

if TYPE_CHECKING:
    from swav_tf.recipe.pretraining import Recipe

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


def _sets(overrides: Sequence[str], key: str) -> bool:
    return any(item.partition("=")[0].strip() == key for item in overrides)


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

        recipe = load_recipe(
            self.config, [*self._kind(), *with_values(self.overrides, {"data.path": self.data})]
        )
        check_recipe(recipe)  # advice is given by the trainer, which knows the images and devices
        return recipe

    def _kind(self) -> list[str]:
        """Return the overrides that make a recipe follow DATA of another kind than its own."""
        if self.data is None or not Path(self.data).exists() or _sets(self.overrides, "data.kind"):
            return []
        from swav_tf.data.sources import recognize
        from swav_tf.recipe.files import load_any_recipe
        from swav_tf.recipe.pretraining import Recipe

        recipe = load_any_recipe(self.config)
        # A recipe may take class folders for plain images; the other way round there are no labels.
        if not isinstance(recipe, Recipe) or recipe.data.kind == "images":
            return []
        found = recognize(self.data)
        kind = found.kind
        if recipe.data.kind == kind:
            return []
        changed = [f"data.kind={kind}"]
        if recipe.data.validation_split:
            changed.append("data.validation_split=null")
        note = ""
        if kind == "images" and recipe.monitor.knn_every_epochs:
            changed.append("monitor.knn_every_epochs=0")
            note = ", without labels and so without k-NN"
        log.info(
            f"{self.data} is read as {kind} ({found.why}){note}; recipe '{recipe.name}' has {recipe.data.kind}."
        )
        return changed

    @property
    def is_auto(self) -> bool:
        """Return whether the recipe is chosen for the images; a file of that name takes precedence."""
        return self.config == "auto" and not Path("auto").is_file()

    def load_for(self, run_dir: Path | None = None, *, fresh: bool = False) -> Recipe:
        """Load the recipe, and for `auto` the recipe of the run in the folder or one chosen for the images."""
        if not self.is_auto:
            return self.load_with_images()
        folder = run_dir or (Path("runs") / f"auto-{Path(self.data).name}" if self.data else None)
        if folder is not None and not fresh and (folder / "config.yaml").is_file():
            # What was chosen depends on the speed of this machine: a run resumes with its own settings.
            saved = RecipeChoice(self.data, str(folder / "config.yaml"), self.overrides)
            return saved.load_with_images()
        recipe, lines = self.choose()
        for line in lines:
            log.info("%s", line)
        return recipe

    def choose(self) -> tuple[Recipe, tuple[str, ...]]:
        """Choose a recipe for the images on this machine; return it with the reasons."""
        from swav_tf.data.survey import survey, this_machine
        from swav_tf.recipe.advice import check_recipe
        from swav_tf.recipe.auto import choose
        from swav_tf.recipe.files import recipe_of
        from swav_tf.recipe.pretraining import Recipe

        given = dict(item.split("=", 1) for item in self.overrides if "=" in item)
        path, kind = self.data or given.get("data.path"), given.get("data.kind")
        if path is None and kind == "digits":
            path = "digits"
        if path is None:
            raise click.UsageError("Give DATA, the images to choose a recipe for, or a recipe: -c NAME.")
        size = given.get("train.batch_size", "")
        choice = choose(survey(path, kind), this_machine(), int(size) if size.isdecimal() else None)
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
                "Give DATA, or -o data.path=..."
            )
        return recipe


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
