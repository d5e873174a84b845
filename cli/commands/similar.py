"""`swav-tf similar`: the images that a model finds similar to one image."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import ModelChoice, Report, json_options, model_options, output_option
from cli.tables.plain import print_table


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option(
    "--features",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Feature file to search, from the same model.",
)
@model_options
@output_option(
    "Picture to write; the extension decides the format.", default=Path("similar.png"), show_default=True
)
@click.option(
    "-k", type=click.IntRange(1, 500), metavar="N", default=12, show_default=True, help="Images to find."
)
@click.option("--data", metavar="DATA", help="Where the images of the feature file are, if they have moved.")
@json_options
def command(
    image: Path, features: Path, model: ModelChoice, output: Path, k: int, data: str | None, report: Report
) -> None:
    """Find the images of a feature file whose features have the highest cosine with those of IMAGE.

    \b
    Examples:
      swav-tf similar cat.jpg --features train.npy --model runs/first
      swav-tf similar cat.jpg --features train.npy --model runs/first -k 30 --output cats.png --json
    """
    from evaluate.feature_file import read_feature_file
    from swav_tf.data.pictures import check_picture

    check_picture(output)
    file = read_feature_file(features)  # before TensorFlow loads
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
