"""`swav-tf crops`: look at what the network will see."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import config_option, data_argument, override_option
from cli.recipes import load_for_run


@click.command(short_help="Write a contact sheet of images and their crops.")
@data_argument
@config_option
@override_option
@click.option(
    "--rows", type=click.IntRange(1, 100), metavar="N", default=6, show_default=True, help="Images to show."
)
@click.option(
    "--epoch",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Epoch whose crops are cut, from 0.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("crops.png"),
    show_default=True,
    help="Picture to write; the ending says the format.",
)
def command(
    data: str | None, config: str, overrides: tuple[str, ...], rows: int, epoch: int, output: Path
) -> None:
    """Write a contact sheet: images of DATA, beside each the crops that training would cut from it.

    DATA is given as to `swav-tf pretrain`; it may be left out where the recipe names its images.

    \b
    Examples:
      swav-tf crops -c demo
      swav-tf crops photos/ -c one_gpu -o data.kind=images --rows 10 --epoch 3 --output sheet.png
    """
    from evaluate.pictures import check_picture

    check_picture(output)
    recipe = load_for_run(config, overrides, data)

    from swav_tf.data.pictures import contact_sheet
    from swav_tf.data.sources import open_source
    from swav_tf.plumbing.files import atomic_write

    sheet = contact_sheet(open_source(recipe.data), recipe, rows=rows, epoch=epoch)
    with atomic_write(output) as partial:
        sheet.save(partial)
    click.echo(f"{output}: {rows} images with {recipe.crop_count} crops each")
