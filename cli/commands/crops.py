"""`swav-tf crops`: look at what the network will see."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import RecipeChoice, output_option, recipe_options


@click.command()
@recipe_options
@click.option(
    "--rows", type=click.IntRange(1, 100), metavar="N", default=6, show_default=True, help="Images to show."
)
@click.option(
    "--epoch", type=click.IntRange(min=0), metavar="N", default=0, show_default=True,
    help="Epoch whose crops are cut, from 0.",
)  # fmt: skip
@output_option(
    "Picture to write; the extension decides the format.", default=Path("crops.png"), show_default=True
)
def command(recipe: RecipeChoice, rows: int, epoch: int, output: Path) -> None:
    """Draw a contact sheet: images of DATA, each followed by the crops that training would cut from it.

    DATA is given as to `swav-tf pretrain`; it may be omitted if the recipe names its images.

    \b
    Examples:
      swav-tf crops -c demo
      swav-tf crops photos/ -c one_gpu -o data.kind=images --rows 10 --epoch 3 --output sheet.png
    """
    from swav_tf.data.pictures import check_picture

    check_picture(output)
    settings = recipe.load_with_images()

    from swav_tf.data.pictures import contact_sheet
    from swav_tf.data.sources import open_source
    from swav_tf.plumbing.files import atomic_write

    sheet = contact_sheet(open_source(settings.data), settings, rows=rows, epoch=epoch)
    with atomic_write(output) as partial:
        sheet.save(partial)
    click.echo(f"{output}: {rows} images with {settings.crop_count} crops each")
