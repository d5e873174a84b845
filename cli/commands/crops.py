"""`swav-tf crops`: draw what the network will see."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from cli.options import count_option, picture_option
from cli.recipe_options import RecipeChoice, auto_recipe_options
from swav_tf.plumbing.log import show_log


@click.command()
@auto_recipe_options
@count_option("--rows", most=100, default=6, help="Number of images.")
@count_option("--epoch", least=0, default=0, help="Epoch whose crops to draw, starting at 0.")
@picture_option("crops.png")
def command(recipe: RecipeChoice, rows: int, epoch: int, output: Path) -> None:
    """Draw a contact sheet: images of DATA, each followed by the crops that training would cut from it.

    DATA is the same as for `swav-tf pretrain`; it may be omitted if the recipe names its images.

    \b
    Examples:
      swav-tf crops -c demo
      swav-tf crops photos/ --rows 10 --epoch 3 --output sheet.png
    """
    show_log(logging.INFO)
    settings = recipe.load_for(trains=False)

    from swav_tf.data.pictures import contact_sheet
    from swav_tf.data.sources import open_source, recognized
    from swav_tf.plumbing.files import atomic_write

    is_folder = recognized(settings.data).kind in ("images", "class_folders")
    if is_folder and output.resolve().is_relative_to(Path(settings.data.path or "").resolve()):
        raise click.UsageError(
            f"the sheet must not be written among the images, where it would become one. Received: {output}. "
            "Pass another --output."
        )
    source = open_source(settings.data)
    sheet = contact_sheet(source, settings, rows=rows, epoch=epoch)
    with atomic_write(output) as partial:
        sheet.save(partial)
    click.echo(f"{output}: {settings.crop_count} crops of each image")
