"""`swav-tf profile`: what bounds a recipe on this machine."""

from __future__ import annotations

import dataclasses

import click

from cli.options import RecipeChoice, Report, recipe_options, report_options
from cli.quiet import load_tensorflow_quietly


@click.command()
@recipe_options
@click.option(
    "--steps", type=click.IntRange(min=2), metavar="N", default=10, show_default=True,
    help="Steps of each measurement.",
)  # fmt: skip
@click.option(
    "--images", type=click.IntRange(min=1), metavar="N",
    help="Images of the complete run, if DATA is omitted.  [default: ImageNet's 1,281,167]",
)  # fmt: skip
@click.option(
    "--memory/--no-memory", default=True, show_default=True, help="Measure memory too, in a separate process."
)
@report_options
def command(recipe: RecipeChoice, steps: int, images: int | None, memory: bool, report: Report) -> None:
    """Run some steps of a recipe and report what bounds it: input, host, device or communication.

    DATA is given as to `swav-tf pretrain`. Without it, random JPEGs of a typical size replace the images. Nothing is
    written.

    \b
    Examples:
      swav-tf profile -c demo
      swav-tf profile ILSVRC2012/train -c one_gpu
      swav-tf profile -c swav_100ep -o train.batch_size=512 --json      (8 GPUs of the 64)
    """
    settings = recipe.load()
    if images is not None and (settings.data.path is not None or settings.data.kind == "digits"):
        raise click.UsageError("--images is for profiles without DATA: the number of these images is known.")

    load_tensorflow_quietly()
    from swav_tf.training.profile.measure import profile

    found = profile(settings, steps=steps, images=images, memory=memory)
    if report.as_json:
        report.show(dataclasses.asdict(found))
        return
    from cli.tables.profile import print_profile

    print_profile(found)
