"""`swav-tf outliers`: the most unusual images."""

from __future__ import annotations

import click

from cli.options import Report, SearchChoice, count_option, report_options, search_options
from cli.tables import table

PRINTED = 12  # rows of the table on the terminal


@click.command()
@search_options
@count_option("--count", default=100, help="Number of images to list.")
@report_options
def command(search: SearchChoice, count: int, report: Report) -> None:
    """List the images that are farthest from their nearest neighbors in feature space.

    OUTPUT receives index.html (one file, readable offline) and outliers.csv. The score is the mean distance of
    standardized features to the ten nearest images, divided by its median over images that are not copies of these.

    \b
    Examples:
      swav-tf outliers photos.npz --output outliers
      swav-tf outliers features/ --index photos.index --output outliers --count 500
    """
    file, graph = search.graph(quiet=report.quiet)

    from evaluate.neighbors import outlier_scores, write_outliers

    found = write_outliers(search.output, file, outlier_scores(graph), count=count, data=search.data)
    rows = [(f"{each['score']:.3f}", each["class"] or "-", each["name"]) for each in found[:PRINTED]]
    lines = [
        table(("score", "class", "image"), rows, left=("image",)),
        f"page      {search.output / 'index.html'}\ntable     {search.output / 'outliers.csv'}",
    ]
    report.show({"output": str(search.output), "outliers": found}, lines)
