"""`swav-tf index`: index features for approximate search."""

from __future__ import annotations

import re
import time
from pathlib import Path

import click

from cli.options import FOLDER, NEW_FILE, Report, output_option, report_options, seed_option
from cli.progress import share_progress


def _bytes(context: click.Context, option: click.Parameter, value: str) -> int:
    """Parse a size such as 8GiB or 500MB."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?) *([KMGT])(i?)B", value)
    if not found:
        raise click.BadParameter(f"must be a size such as 8GiB or 500MB. Received: {value}.")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** (1 + "KMGT".index(found[2])))


@click.command()
@click.argument("features", type=FOLDER)
@output_option("Index to write.", type=NEW_FILE, required=True)
@click.option(
    "--memory",
    callback=_bytes,
    metavar="SIZE",
    default="8GiB",
    help="Maximum size of the index. If float16 vectors would exceed it, product codes are stored instead.",
)
@seed_option("the training sample and of the queries that measure the recall")
@report_options
def command(features: Path, output: Path, memory: int, seed: int, report: Report) -> None:
    """Index the features in a folder of parts, for `similar --index`, `knn --index` and `serve --index`.

    The index is trained on a sample and filled block by block. An interrupted command resumes when it is run again. The
    search is then tuned to find 99 % of the ten nearest neighbors of held-out images, and the measured share is
    reported. Below 100,000 images exact search is fast enough.

    \b
    Examples:
      swav-tf features photos/ --kind images --model runs/first --output features/
      swav-tf index features/ --output photos.index
      swav-tf index features/ --output photos.index --memory 500MB
    """
    from evaluate.search import build_index

    began = time.perf_counter()
    with share_progress("indexed", quiet=report.quiet) as progress:
        facts = build_index(features, output, memory=memory, seed=seed, on_progress=progress)
    seconds = time.perf_counter() - began
    images, size = sum(facts["rows"]), facts["bytes"] / 2**20
    reported = ("feature_dim", "factory", "probes", "candidates", "bytes", "recall_at_10", "recall_queries")
    document = {"output": str(output), "images": images, "seconds": seconds}
    lines = [
        f"{output}: {images:,} images x {facts['feature_dim']} features, {size:,.0f} MiB in {seconds:.0f} s",
        f"recall@10 {100 * facts['recall_at_10']:.1f} % of {facts['recall_queries']:,} held-out images; "
        f"{facts['factory']}, {facts['probes']} lists searched and {facts['candidates']} cosines compared per query",
    ]
    report.show(document | {name: facts[name] for name in reported}, lines)
