"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from swav_tf.recipe import Recipe

data_argument = click.argument("data", required=False)

config_option = click.option(
    "-c",
    "--config",
    required=True,
    metavar="FILE_OR_NAME",
    help="Recipe: a YAML file, or a name from `swav-tf config list`.",
)

override_option = click.option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, as train.epochs=10 or crops.0.size=160. May be repeated.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else there."
)


def load(config: str, overrides: Sequence[str], data: str | None = None) -> Recipe:
    """The recipe that the options ask for; a DATA argument wins over the recipe's `data.path`."""
    from swav_tf.recipe_files import load_recipe

    if data is not None:
        overrides = [*overrides, f"data.path={json.dumps(data, ensure_ascii=False)}"]
    return load_recipe(config, overrides)


def load_for_run(config: str, overrides: Sequence[str], data: str | None) -> Recipe:
    """The same, its settings known to work together: refused in a moment, before anything large is loaded."""
    from swav_tf.recipe_advice import check_recipe

    recipe = load(config, overrides, data)
    if recipe.data.path is None and recipe.data.kind != "digits":
        raise click.UsageError(
            f"recipe '{recipe.name}' does not say where the images are (data.kind is {recipe.data.kind}). "
            "Give DATA, or -o data.path=..."
        )
    check_recipe(recipe)  # its advice is for when images and devices are known: the trainer gives it
    return recipe


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2))
