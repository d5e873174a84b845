"""`swav-tf similar`: find the images most similar to one image."""

from __future__ import annotations

from pathlib import Path

import click

from cli.model_options import ModelChoice, model_options
from cli.options import (
    PATH,
    Report,
    count_option,
    index_option,
    is_default,
    json_options,
    moved_option,
    picture_option,
)
from cli.tables import table


@click.command()
@click.argument("image", type=PATH)
@click.option(
    "--features",
    type=PATH,
    metavar="FILE",
    help="Feature file or folder of parts to search, computed with the same model.",
)
@index_option("searched instead of --features; add --features only if the features have moved")
@model_options
@picture_option("similar.png")
@count_option("-k", most=500, default=12, help="Number of images to find.")
@moved_option
@json_options
def command(
    image: Path,
    features: Path | None,
    index: Path | None,
    model: ModelChoice,
    output: Path,
    k: int,
    data: str | None,
    report: Report,
) -> None:
    """Find the images in a feature file that are most similar to IMAGE, by cosine similarity.

    The search in a feature file is exact. An index finds nearly the same images among millions, in milliseconds.

    \b
    Examples:
      swav-tf similar cat.jpg --features train.npy --model runs/first
      swav-tf similar cat.jpg --features train.npy --model runs/first -k 30 --output cats.png --json
      swav-tf similar cat.jpg --index photos.index --model runs/first
    """
    if features is None and index is None:
        raise click.MissingParameter(param_type="option", param_hint="'--features' or '--index'")
    from evaluate.search import open_searchable

    file = open_searchable(features, index)  # before TensorFlow loads
    if is_default("k") and k > len(file):
        k = len(file)
        click.echo(f"{file.path} has {k:,} images: all are shown.", err=True)
    backend = model.open()

    from evaluate.similar import draw_similar, images_found, query_view, similar_images
    from swav_tf.plumbing.files import atomic_write

    view = query_view(image, backend)
    found = similar_images(view, file, backend, k=k)
    images = images_found(found, file, backend.data, data)
    drawn = draw_similar(view, image.name, found, images, backend)
    with atomic_write(output) as partial:
        drawn.save(partial)
    document = {"image": str(image), "features": str(file.path), "output": str(output), "similar": found}
    rows = [(f"{near['cosine']:.3f}", near["class"] or "-", near["name"]) for near in found]
    shown = table(("cosine", "class", "image"), rows, left=("image",))
    report.show(document, [shown, f"picture   {output}"])
