"""`swav-tf config`: list, show and check recipes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from cli.options import Report, count_option, json_options
from cli.recipe_options import RecipeChoice, override_option

recipe_argument = click.argument("recipe", metavar="FILE_OR_NAME")


@click.group()
def command() -> None:
    """List, show and check recipes.

    \b
    Examples:
      swav-tf config list
      swav-tf config show demo > mine.yaml
      swav-tf config auto photos/
      swav-tf config settings queue
      swav-tf config check mine.yaml -o train.batch_size=128 --images 50000
    """


@command.command("list", short_help="List the bundled recipes.")
@json_options
def list_recipes(report: Report) -> None:
    """List the bundled recipes, with the command that uses each.

    \b
    Examples:
      swav-tf config list
      swav-tf config list --json
    """
    from swav_tf.recipe.files import bundled_recipes, load_any_recipe

    recipes = {name: (load_any_recipe(name).kind, summary) for name, summary in bundled_recipes().items()}
    width = max(map(len, recipes))
    report.show(
        {name: {"kind": kind, "summary": summary} for name, (kind, summary) in recipes.items()},
        [f"{name:{width}}  {kind:8}  {summary}" for name, (kind, summary) in recipes.items()],
    )


@command.command(short_help="Print a recipe with every setting.")
@recipe_argument
@override_option
@json_options
def show(recipe: str, overrides: tuple[str, ...], report: Report) -> None:
    """Print a recipe with every setting, including those at their defaults.

    \b
    Examples:
      swav-tf config show swav_200ep
      swav-tf config show one_gpu -o train.epochs=50 > mine.yaml
    """
    from swav_tf.recipe.files import load_any_recipe, recipe_header, recipe_yaml

    loaded = load_any_recipe(recipe, overrides)
    # With overrides, the expected figure in the header would no longer be true.
    header = [] if overrides else [recipe_header(recipe)]
    report.show(loaded.model_dump(mode="json"), [*header, recipe_yaml(loaded).rstrip("\n")])


@command.command(short_help="Print the recipe chosen for images and this machine.")
@click.argument("data")
@override_option
@json_options
def auto(data: str, overrides: tuple[str, ...], report: Report) -> None:
    """Print the recipe that `swav-tf pretrain DATA` would use, with the reasons as comments. Nothing is trained.

    \b
    Examples:
      swav-tf config auto photos/
      swav-tf config auto photos/ -o train.epochs=50 > mine.yaml
    """
    from swav_tf.recipe.files import recipe_yaml

    recipe, lines = RecipeChoice(data, "auto", overrides).choose()
    report.show(
        recipe.model_dump(mode="json"), [*(f"# {line}" for line in lines), recipe_yaml(recipe).rstrip("\n")]
    )


@command.command(short_help="Report errors in a recipe and settings known to work badly.")
@click.argument("recipes", metavar="FILE_OR_NAME...", nargs=-1, required=True)
@override_option
@count_option("--images", help="Number of training images, to check settings that are counted in steps.")
@count_option("--replicas", help="Number of devices (GPUs) on all machines.")
@json_options
def check(
    recipes: tuple[str, ...],
    overrides: tuple[str, ...],
    images: int | None,
    replicas: int | None,
    report: Report,
) -> int:
    """Report all errors in recipes (exit code 2), or settings that are known to work badly (exit code 0).

    With several recipes, --json maps each to its result.

    \b
    Examples:
      swav-tf config check mine.yaml
      swav-tf config check configs/*.yaml
      swav-tf config check passl_1node --replicas 8 --images 1281167
    """
    from swav_tf.plumbing.errors import RecipeError
    from swav_tf.recipe.advice import check_recipe
    from swav_tf.recipe.files import load_any_recipe

    results, lines, errors = {}, [], []
    for recipe in recipes:
        try:
            loaded = load_any_recipe(recipe, overrides)
            advice = check_recipe(loaded, images=images, replicas=replicas)
        except RecipeError as error:
            errors.append(str(error))
            results[recipe] = {"valid": False, "error": str(error), "advice": []}
            continue
        number = f"{len(advice) or 'no'} remark{'' if len(advice) == 1 else 's'}"
        lines += [f"{loaded.name}: valid, {number}", *(f"  Advice: {remark}" for remark in advice)]
        remarks = [dataclasses.asdict(remark) for remark in advice]
        results[recipe] = {"valid": True, "error": None, "advice": remarks}
    report.show(results if len(recipes) > 1 else results[recipes[0]], lines)
    if errors and not report.as_json:
        raise RecipeError("\n".join(errors))
    return RecipeError.exit_code if errors else 0


@command.command(short_help="Explain every setting, or those that contain a pattern.")
@click.argument("pattern", required=False, default="")
@click.option(
    "--kind", type=click.Choice(("pretrain", "probe", "finetune")), default="pretrain", help="Kind of recipe."
)
@json_options
def settings(pattern: str, kind: str, report: Report) -> None:
    """Explain every setting of one kind of recipe, or those with PATTERN in path or meaning.

    Shows path, type, bounds, default and meaning.

    \b
    Examples:
      swav-tf config settings
      swav-tf config settings queue
      swav-tf config settings --kind probe
    """
    from swav_tf.recipe.explain import describe_settings
    from swav_tf.recipe.files import KINDS

    fields = {
        path: field
        for path, field in describe_settings(KINDS[kind]).items()
        if pattern.lower() in f"{path} {field['meaning']}".lower()
    }
    if not fields:
        raise click.UsageError(f"No setting of {kind} recipes has {pattern!r} in its path or meaning.")

    def default(field: dict[str, Any]) -> str:
        return f"default {json.dumps(field['default'])}" if "default" in field else "must be set"

    report.show(
        fields,
        [
            f"{path}\n    {field['type']}, {default(field)}. {field['meaning']}"
            for path, field in fields.items()
        ],
    )
