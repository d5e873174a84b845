"""`swav-tf knn`: measure features without training a classifier."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from cli.options import PATH, Report, amount_option, counts, index_option, is_default, report_options
from cli.progress import share_progress
from cli.tables import table


@click.command()
@click.argument("train", type=PATH)
@click.argument("test", type=PATH)
@click.option(
    "-k",
    "neighbors",
    callback=counts,
    metavar="N,...",
    default="10,20,100,200",
    help="Values of k, the number of neighbors that vote; the result has one row per value.",
)
@amount_option(
    "--temperature", metavar="X", default=0.07, help="A neighbor's vote has weight exp(cosine / X)."
)
@index_option("TRAIN must then be the folder of parts it was built from")
@report_options
def command(
    train: Path,
    test: Path,
    neighbors: tuple[int, ...],
    temperature: float,
    index: Path | None,
    report: Report,
) -> None:
    """Classify the images of feature file TEST by their nearest neighbors in TRAIN, by cosine similarity.

    The search is exact, unless an index is given. Files that end in .npy and folders stay on disk: 1.28 million
    features of 2048 dimensions and 50,000 queries need less than 1 GiB of memory.

    \b
    Examples:
      swav-tf knn train.npz test.npz
      swav-tf knn train.npy val.npy -k 20 --temperature 0.07 --json
      swav-tf knn train/ val.npy --index train.index
    """
    from evaluate.feature_file import read_feature_file
    from evaluate.knn import knn_accuracies
    from evaluate.search import open_index

    known, queries = read_feature_file(train), read_feature_file(test)
    if is_default("neighbors"):
        fitting = tuple(k for k in neighbors if k <= len(known)) or (len(known),)
        if fitting != neighbors and not report.quiet:
            click.echo(f"{train} has {len(known):,} images: k is {', '.join(map(str, fitting))}.", err=True)
        neighbors = fitting
    with share_progress("neighbors", quiet=report.quiet) as progress:
        accuracies = knn_accuracies(
            known,
            queries,
            neighbors=neighbors,
            temperature=temperature,
            index=None if index is None else open_index(index, train),
            on_progress=progress,
        )
    document = {
        "train": str(train),
        "test": str(test),
        "train_images": len(known),
        "test_images": len(queries),
        "temperature": temperature,
        "index": None if index is None else str(index),
        "knn": {k: dataclasses.asdict(accuracy) for k, accuracy in accuracies.items()},
        "model": known.facts.get("model"),
    }
    title = f"k-NN accuracy of the {len(queries):,} images in {test}, by the votes of the {len(known):,} in {train}"
    rows = [(k, f"{100 * a.top1:.2f} %", f"{100 * a.top5:.2f} %") for k, a in accuracies.items()]
    report.show(document, [title, table(("k", "top-1", "top-5"), rows)])
