"""`swav-tf plot`: draw a map of a feature file."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import PATH, count_option, picture_option, seed_option


@click.command()
@click.argument("features", type=PATH)
@picture_option("plot.png")
@click.option(
    "--method",
    type=click.Choice(["pca", "tsne"]),
    default="pca",
    help="Projection to 2 dimensions.",
)
@count_option(
    "--limit",
    default=5000,
    help="Draw at most N images, chosen at random; t-SNE of 5,000 takes about a minute.",
)
@seed_option("the choice of images and t-SNE")
def command(features: Path, output: Path, method: str, limit: int, seed: int) -> None:
    """Draw a map of the images in a feature file, colored by class.

    Features are normalized to length 1 first, so that distances in the map follow cosines.

    \b
    Examples:
      swav-tf plot test.npz --output plot.png
      swav-tf plot val.npy --output plot.png --method tsne --limit 10000
    """
    from evaluate.feature_file import read_feature_file
    from evaluate.feature_map import draw_map, map_features

    file = read_feature_file(features)
    drawn = map_features(file, method=method, limit=limit, seed=seed)
    draw_map(output, file, drawn, method=method)
    click.echo(f"{output}: {len(drawn.rows):,} of {len(file):,} images")
