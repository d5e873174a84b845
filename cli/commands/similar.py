"""`swav-tf similar`: the images that a model finds alike."""

from __future__ import annotations

from pathlib import Path

import click

from cli.opening import open_model
from cli.options import json_option, model_option, output_option, print_json, provider_option


@click.command(short_help="Find the images of a feature file nearest to one image.")
@click.argument("image", type=click.Path(path_type=Path))
@click.option(
    "--features",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Feature file to search, by the same model.",
)
@model_option
@provider_option
@output_option(
    "Picture to write; the ending says the format.", default=Path("similar.png"), show_default=True
)
@click.option(
    "-k", type=click.IntRange(1, 500), metavar="N", default=12, show_default=True, help="Images to find."
)
@click.option("--data", metavar="DATA", help="Where the images of the feature file are, if they have moved.")
@json_option
def command(
    image: Path,
    features: Path,
    model: str,
    provider: str | None,
    output: Path,
    k: int,
    data: str | None,
    as_json: bool,
) -> None:
    """Find the images of a feature file whose features have the greatest cosine with those of IMAGE.

    \b
    Examples:
      swav-tf similar cat.jpg --features train.npy --model runs/first
      swav-tf similar cat.jpg --features train.npy --model runs/first -k 30 -o cats.png --json
    """
    from evaluate.feature_file import read_feature_file
    from evaluate.pictures import check_picture

    check_picture(output)
    file = read_feature_file(features)  # before TensorFlow loads
    runner = open_model(model, provider)

    from evaluate.similar import draw_similar, images_of, query_view, similar_images
    from swav_tf.plumbing.files import atomic_write

    view = query_view(image, runner)
    found = similar_images(view, file, runner, k=k)
    images = images_of(file, runner.data, data)
    drawn = draw_similar(view, image.name, found, images, runner)
    with atomic_write(output) as partial:
        drawn.save(partial)
    if as_json:
        near = [
            {"name": s.name, "label": s.label, "class": s.class_name, "cosine": s.cosine, "index": s.index}
            for s in found
        ]
        print_json({"image": str(image), "features": str(features), "output": str(output), "similar": near})
        return

    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("cosine", "class", "image"):
        table.add_column(heading, justify="left" if heading == "image" else "right")
    for s in found:
        table.add_row(f"{s.cosine:.3f}", s.class_name or "-", s.name)
    Console(highlight=False, soft_wrap=True, markup=False).print(table)
    click.echo(f"picture   {output}")
