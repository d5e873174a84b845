"""`swav-tf profile`: find the bottleneck of a recipe on this machine."""

from __future__ import annotations

import dataclasses

import click

from cli.options import Report, count_option, report_options
from cli.quiet import load_tensorflow_quietly
from cli.recipe_options import RecipeChoice, recipe_options


@click.command()
@recipe_options
@count_option("--steps", least=2, default=10, help="Steps per measurement.")
@count_option(
    "--images",
    show_default="ImageNet's 1,281,167",
    help="Number of training images to assume if DATA is omitted.",
)
@report_options
def command(recipe: RecipeChoice, steps: int, images: int | None, report: Report) -> None:
    """Run a few steps of a recipe and report its bottleneck: input, host or device.

    DATA is the same as for `swav-tf pretrain`. Without it, random JPEGs of typical size are used. Nothing is written
    to disk.

    \b
    Examples:
      swav-tf profile -c demo
      swav-tf profile ILSVRC2012/train -c one_gpu
      swav-tf profile -c swav_100ep -o train.batch_size=512 --json
    """
    settings = recipe.load()
    if images is not None and (settings.data.path is not None or settings.data.kind == "digits"):
        raise click.UsageError("--images is for profiles without DATA: the number of these images is known.")

    load_tensorflow_quietly()
    from swav_tf.training.profile.measure import profile

    found = profile(settings, steps=steps, images=images)
    if report.as_json:
        report.show(dataclasses.asdict(found))
        return
    from cli.tables.profile import print_profile

    print_profile(found)
