"""The recipe that the options of a command ask for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from swav_tf.recipe.pretraining import Recipe


def with_arguments(overrides: Sequence[str], given: Mapping[str, str | None]) -> list[str]:
    """The overrides, and after them what was given otherwise, which wins.

    Args:
        overrides: as key=value.
        given: texts by key; None: not given.
    """
    return [
        *overrides,
        *(
            f"{key}={json.dumps(value, ensure_ascii=False)}"
            for key, value in given.items()
            if value is not None
        ),
    ]


def load(config: str, overrides: Sequence[str], data: str | None = None) -> Recipe:
    """The recipe; a DATA argument wins over its `data.path`."""
    from swav_tf.recipe.files import load_recipe

    return load_recipe(config, with_arguments(overrides, {"data.path": data}))


def load_for_run(config: str, overrides: Sequence[str], data: str | None) -> Recipe:
    """The same, its settings known to work together: refused in a moment, before anything large is loaded."""
    from swav_tf.recipe.advice import check_recipe

    recipe = load(config, overrides, data)
    if recipe.data.path is None and recipe.data.kind != "digits":
        raise click.UsageError(
            f"recipe '{recipe.name}' does not say where the images are (data.kind is {recipe.data.kind}). "
            "Give DATA, or -o data.path=..."
        )
    check_recipe(recipe)  # its advice is for when images and devices are known: the trainer gives it
    return recipe
