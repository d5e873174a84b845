"""`swav-tf duplicates`: find near-duplicates and exact copies among images."""

from __future__ import annotations

import click

from cli.options import Report, SearchChoice, count_option, report_options, search_options


@click.command()
@search_options
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    metavar="X",
    show_default="derived from the distances between the images",
    help="Minimum cosine of standardized features at which images count as near-duplicates.",
)
@count_option("--groups", default=100, help="Groups to show, the closest first; the table lists all.")
@report_options
def command(search: SearchChoice, threshold: float | None, groups: int, report: Report) -> None:
    """Find groups of near-duplicates by the features of images: a feature file or a folder of parts.

    Exact copies are recognized by their content. OUTPUT receives index.html (one file, readable offline) and
    duplicates.csv (one row per image). The right threshold depends on the model. The default allows a distance (1 -
    cosine) of a tenth of the median distance to the tenth nearest image; check the page and adjust --threshold.

    \b
    Examples:
      swav-tf duplicates photos.npz --output duplicates
      swav-tf duplicates features/ --index photos.index --output duplicates --threshold 0.99
    """
    file, graph = search.graph(quiet=report.quiet)

    from evaluate.neighbors import find_groups, near_threshold, write_duplicates
    from swav_tf.plumbing.names import counted

    reason = ""
    if threshold is None:
        threshold = round(near_threshold(graph), 4)
        reason = " (a tenth of the usual distance to the tenth nearest image)"
    found = write_duplicates(
        search.output,
        file,
        find_groups(graph, threshold),
        shown=groups,
        threshold=threshold,
        data=search.data,
    )
    cosine = f"a cosine of at least {threshold:g}{reason}"
    groups_of = f"{counted(found['groups'], 'group')} of {found['images']:,} images with {cosine}"
    lines = [
        f"{groups_of}; {counted(found['exact_copies'], 'exact copy', 'exact copies')}"
        if found["groups"]
        else f"No near-duplicates: no two images have {cosine}.",
        f"page      {search.output / 'index.html'}\ntable     {search.output / 'duplicates.csv'}",
    ]
    report.show({"output": str(search.output), "threshold": threshold, **found}, lines)
