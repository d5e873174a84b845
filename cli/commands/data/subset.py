"""`swav-tf data subset`: list a share of the labeled images."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import NEW_FILE, ImageChoice, Report, image_options, json_options, output_option, seed_option


@click.command(short_help="Draw a random share of each class's images.")
@image_options(
    required=True,
    kinds=("class_folders", "list", "tar", "parquet", "tfrecord", "tfds", "digits"),
    default="detected from the content of DATA",
)
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE", required=True,
    help="Share of the images of each class, 0 to 1; at least one image per class is drawn.",
)  # fmt: skip
@output_option("List to write, one name per line.", type=NEW_FILE, required=True)
@seed_option("the draw")
@json_options
def command(images: ImageChoice, share: float, output: Path, seed: int, report: Report) -> None:
    """Draw a random share of the labeled images in DATA and list their names, for `finetune --subset`.

    \b
    Examples:
      swav-tf data subset ILSVRC2012/train --share 0.1 --output ten_percent.txt
      swav-tf data subset digits --share 0.1 --output digits_10percent.txt
    """
    from swav_tf.data.subset import draw_subset
    from swav_tf.plumbing.files import atomic_write
    from swav_tf.recipe.data import Data

    source = images.open(Data()).source
    names = draw_subset(source, share=share, seed=seed)
    with atomic_write(output) as partial:
        partial.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    report.show(
        {"output": str(output), "images": len(names), "of": len(source), "seed": seed},
        [f"{output}: {len(names):,} of {len(source):,} images"],
    )
