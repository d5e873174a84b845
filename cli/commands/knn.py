"""`swav-tf knn`: what features are worth, without training anything."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import counts, json_option, print_json, quiet_option
from cli.progress import share_progress


@click.command(short_help="k-NN accuracy of a feature file's labels on another's images.")
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("test", type=click.Path(path_type=Path))
@click.option(
    "-k",
    "neighbours",
    callback=counts,
    metavar="N,...",
    default="10,20,100,200",
    show_default=True,
    help="Neighbours that vote.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    default=0.07,
    show_default=True,
    help="A neighbour's vote is exp(cosine / X).",
)
@quiet_option
@json_option
def command(
    train: Path, test: Path, neighbours: tuple[int, ...], temperature: float, quiet: bool, as_json: bool
) -> None:
    """Classify the images of feature file TEST by their nearest neighbours in TRAIN, by cosine.

    The search is exact. Files that end in .npy stay on disk: 1.28 million features of 2048 and
    50,000 queries need less than 1 GiB of memory.

    \b
    Examples:
      swav-tf knn train.npz test.npz
      swav-tf knn train.npy val.npy -k 20 --temperature 0.07 --json
    """
    from evaluate.feature_file import read_feature_file
    from evaluate.knn import knn_accuracies

    known, asked = read_feature_file(train), read_feature_file(test)
    with share_progress("neighbours", quiet=quiet or as_json) as progress:
        accuracies = knn_accuracies(
            known, asked, neighbours=neighbours, temperature=temperature, on_progress=progress
        )
    if as_json:
        print_json(
            {
                "train": str(train),
                "test": str(test),
                "train_images": len(known.rows.labels),
                "test_images": len(asked.rows.labels),
                "temperature": temperature,
                "knn": {k: {"top1": a.top1, "top5": a.top5} for k, a in accuracies.items()},
                "model": known.facts.get("model"),
            }
        )
        return

    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("k", "top-1", "top-5"):
        table.add_column(heading, justify="right")
    for k, accuracy in accuracies.items():
        table.add_row(str(k), f"{100 * accuracy.top1:.2f} %", f"{100 * accuracy.top5:.2f} %")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"k-NN accuracy of {len(asked.rows.labels):,} images by {len(known.rows.labels):,} others")
    console.print(table)
