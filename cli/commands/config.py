"""`swav-tf config`: see and check recipes."""

from __future__ import annotations

import dataclasses

import click

from cli.options import json_option, override_option, print_json


@click.group()
def command() -> None:
    """List, show and check recipes.

    \b
    Examples:
      swav-tf config list
      swav-tf config show demo > mine.yaml
      swav-tf config settings
      swav-tf config check mine.yaml -o train.batch_size=128 --images 50000
    """


@command.command("list")
@json_option
def list_recipes(as_json: bool) -> None:
    """List the recipes that come with the package, each with the command that it is for.

    \b
    Examples:
      swav-tf config list
      swav-tf config list --json
    """
    from swav_tf.recipe.files import bundled_recipes, recipe_kind

    recipes = {name: (recipe_kind(name), summary) for name, summary in bundled_recipes().items()}
    if as_json:
        print_json({name: {"kind": kind, "summary": summary} for name, (kind, summary) in recipes.items()})
        return
    width = max(map(len, recipes))
    for name, (kind, summary) in recipes.items():
        click.echo(f"{name:{width}}  {kind:8}  {summary}")


@command.command(short_help="Print a recipe with every setting.")
@click.argument("recipe", metavar="FILE_OR_NAME")
@override_option
@json_option
def show(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print a recipe with every setting, also those it leaves at their defaults.

    \b
    Examples:
      swav-tf config show swav_200ep
      swav-tf config show one_gpu -o train.epochs=50 > mine.yaml
    """
    from swav_tf.recipe.files import load_any_recipe, recipe_header, recipe_yaml

    loaded = load_any_recipe(recipe, overrides)
    if as_json:
        print_json(loaded.model_dump(mode="json"))
        return
    if not overrides:  # with overrides the header's expected figure would no longer be true
        click.echo(recipe_header(recipe))
    click.echo(recipe_yaml(loaded), nl=False)


@command.command(short_help="Tell errors and known dangers of a recipe.")
@click.argument("recipe", metavar="FILE_OR_NAME")
@override_option
@click.option(
    "--images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Training images, for what is counted in steps.",
)
@click.option("--replicas", type=click.IntRange(min=1), metavar="N", help="Devices (GPUs) over all nodes.")
@json_option
def check(
    recipe: str, overrides: tuple[str, ...], images: int | None, replicas: int | None, as_json: bool
) -> int:
    """Tell all errors of a recipe (exit code 2), or what is known to go badly with it (exit code 0).

    \b
    Examples:
      swav-tf config check mine.yaml
      swav-tf config check passl_1node --replicas 8 --images 1281167
    """
    from swav_tf.plumbing.errors import RecipeError
    from swav_tf.recipe.advice import check_recipe
    from swav_tf.recipe.classifier_advice import check_classifier_recipe
    from swav_tf.recipe.files import load_any_recipe
    from swav_tf.recipe.pretraining import Recipe

    try:
        loaded = load_any_recipe(recipe, overrides)
        if isinstance(loaded, Recipe):
            advice = check_recipe(loaded, images=images, replicas=replicas)
        else:
            advice = check_classifier_recipe(loaded, images=images, replicas=replicas)
    except RecipeError as error:
        if not as_json:
            raise
        print_json({"valid": False, "error": str(error), "advice": []})
        return error.exit_code
    if as_json:
        print_json(
            {"valid": True, "error": None, "advice": [dataclasses.asdict(remark) for remark in advice]}
        )
        return 0
    for remark in advice:
        click.echo(f"Advice: {remark}")
    click.echo(f"{loaded.name}: valid, {len(advice) or 'no'} remark{'' if len(advice) == 1 else 's'}")
    return 0


@command.command(short_help="Explain every setting.")
@click.option(
    "--kind",
    type=click.Choice(("pretrain", "probe", "finetune")),
    default="pretrain",
    show_default=True,
    help="Recipes of which kind.",
)
@json_option
def settings(kind: str, as_json: bool) -> None:
    """Explain every setting of a kind of recipe: path, type, bounds, default and meaning.

    \b
    Examples:
      swav-tf config settings
      swav-tf config settings --kind probe
    """
    from swav_tf.recipe.fields import describe_field, recipe_fields
    from swav_tf.recipe.files import KINDS

    fields = {field.path: describe_field(field) for field in recipe_fields(KINDS[kind])}
    if as_json:
        print_json(fields)
        return
    for path, field in fields.items():
        click.echo(f"{path}\n    {field['type']}, {field['default']}. {field['meaning']}")
