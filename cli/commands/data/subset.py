"""`swav-tf data subset`: the list of a share of the labelled images."""

from __future__ import annotations

from pathlib import Path

import click

from cli.opening import open_source_of
from cli.options import given_split_option, json_option, output_option, print_json, seed_option


@click.command(short_help="List a share of the images, the same of each class.")
@click.argument("data")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    required=True,
    help="Of each class's images, 0 to 1; at least one is taken.",
)
@output_option(
    "List to write, one name per line.", type=click.Path(dir_okay=False, path_type=Path), required=True
)
@click.option(
    "--kind",
    type=click.Choice(["class_folders", "tfrecord", "tfds", "digits"]),
    help="How DATA is read.  [default: guessed from what is there]",
)
@given_split_option
@seed_option("Seed of the draw.")
@json_option
def command(
    data: str, share: float, output: Path, kind: str | None, split: str, seed: int, as_json: bool
) -> None:
    """Draw a share of the labelled images in DATA, and list their names for `finetune --subset`.

    \b
    Examples:
      swav-tf data subset ILSVRC2012/train --share 0.1 -o ten_percent.txt
      swav-tf data subset digits --share 0.1 -o digits_10percent.txt
    """
    from swav_tf.data.subset import draw_subset
    from swav_tf.plumbing.files import atomic_write

    source, _ = open_source_of(data, kind, split)
    names = draw_subset(source, share=share, seed=seed)
    with atomic_write(output) as partial:
        partial.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    if as_json:
        print_json({"output": str(output), "images": len(names), "of": len(source), "seed": seed})
    else:
        click.echo(f"{output}: {len(names):,} of {len(source):,} images")
