"""`swav-tf similar`: the images that a model finds similar to one image."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import (
    PATH,
    ModelChoice,
    Report,
    count_option,
    is_default,
    json_options,
    model_options,
    picture_option,
)
from cli.tables.plain import print_table


@click.command()
@click.argument("image", type=PATH)
@click.option(
    "--features",
    required=True,
    type=PATH,
    metavar="FILE",
    help="Feature file to search, computed with the same model.",
)
@model_options
@picture_option(default=Path("similar.png"))
@count_option("-k", most=500, default=12, help="Number of images to find.")
@click.option("--data", metavar="DATA", help="Location of the feature file's images, if they have moved.")
@json_options
def command(
    image: Path, features: Path, model: ModelChoice, output: Path, k: int, data: str | None, report: Report
) -> None:
    """Find the images in a feature file that are most similar to IMAGE, by cosine similarity.

    \b
    Examples:
      swav-tf similar cat.jpg --features train.npy --model runs/first
      swav-tf similar cat.jpg --features train.npy --model runs/first -k 30 --output cats.png --json
    """
    from evaluate.feature_file import read_feature_file

    file = read_feature_file(features)  # before TensorFlow loads
    if is_default("k") and k > len(file):
        k = len(file)
        click.echo(f"{features} has {k:,} images: all are shown.", err=True)
    backend = model.open()

    from evaluate.similar import draw_similar, images_of, query_view, similar_images
    from swav_tf.plumbing.files import atomic_write

    view = query_view(image, backend)
    found = similar_images(view, file, backend, k=k)
    images = images_of(file, backend.data, data)
    drawn = draw_similar(view, image.name, found, images, backend)
    with atomic_write(output) as partial:
        drawn.save(partial)
    if report.as_json:
        report.show({"image": str(image), "features": str(features), "output": str(output), "similar": found})
        return
    rows = [(f"{near['cosine']:.3f}", near["class"] or "-", near["name"]) for near in found]
    print_table(("cosine", "class", "image"), rows, left=("image",))
    click.echo(f"picture   {output}")
