"""`swav-tf profile`: what bounds a recipe on this machine."""

from __future__ import annotations

import dataclasses

import click

from cli.options import config_option, data_argument, json_option, override_option, print_json
from cli.quiet import load_tensorflow_quietly
from cli.recipes import load


@click.command(short_help="Measure what bounds a recipe on this machine.")
@data_argument
@config_option
@override_option
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    metavar="N",
    help="Steps of each measurement.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images of the whole recipe, where DATA is left out.  [default: ImageNet's 1,281,167]",
)
@click.option(
    "--memory/--no-memory",
    default=True,
    show_default=True,
    help="Measure memory too, in a process of its own.",
)
@click.option(
    "--find-batch",
    is_flag=True,
    help="Look for the largest batch that fits, in processes of their own (takes minutes).",
)
@json_option
def command(
    data: str | None,
    config: str,
    overrides: tuple[str, ...],
    steps: int,
    images: int | None,
    memory: bool,
    find_batch: bool,
    as_json: bool,
) -> None:
    """Run some steps of a recipe and say what bounds it: input, host, device or communication.

    DATA is given as to `swav-tf pretrain`. Without it, random JPEGs of a typical size stand for the
    images. Nothing is written.

    \b
    Examples:
      swav-tf profile -c demo
      swav-tf profile ILSVRC2012/train -c one_gpu
      swav-tf profile -c one_gpu --find-batch --steps 20
      swav-tf profile -c swav_100ep -o train.batch_size=512 --json      (8 GPUs of the 64)
    """
    from swav_tf.recipe.advice import check_recipe

    recipe = load(config, overrides, data)
    check_recipe(recipe)  # refused in a moment, before anything large is loaded
    if images is not None and (recipe.data.path is not None or recipe.data.kind == "digits"):
        raise click.UsageError("--images is for profiles without DATA: these images count themselves")

    load_tensorflow_quietly()
    from swav_tf.training.profile.measure import profile

    found = profile(recipe, steps=steps, images=images, memory=memory, find_batch=find_batch, quiet=as_json)
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    from cli.tables.profile import print_profile

    print_profile(found)
