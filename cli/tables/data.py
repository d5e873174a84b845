"""The findings of `swav-tf data check` as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from swav_tf.data.check import DataReport


LISTED = 20
CLASSES_LISTED = 5


def print_report(data: str, kind: str, report: DataReport) -> None:
    """Print counts, sizes, classes and lists of problems."""
    from swav_tf.plumbing.names import printable

    click.echo(f"{printable(data)}: {report.images:,} images, read as {kind}")
    spreads = report.spreads()
    for name, unit in (("width", "px"), ("height", "px"), ("bytes", "bytes")):
        if name in spreads:
            least, median, greatest = spreads[name]
            click.echo(f"{name:8} {least:,.0f} to {greatest:,.0f} {unit}, median {median:,.0f}")
    if report.classes:
        least, median, greatest = spreads["images_per_class"]
        click.echo(
            f"classes  {len(report.classes):,}, of {least:,.0f} to {greatest:,.0f} images, median {median:,.0f}"
        )
        fewest = sorted(report.classes.items(), key=lambda item: item[1])[:CLASSES_LISTED]
        if least < median:
            click.echo(
                "         fewest: " + ", ".join(f"{printable(name)} {count:,}" for name, count in fewest)
            )
    if report.unlabeled:
        click.echo(f"         {report.unlabeled:,} images have no class")
    if report.duplicates is not None:
        extra = sum(len(names) - 1 for names in report.duplicates)
        click.echo(f"copies   {extra:,} images are byte-identical to another")
        _print_list([" = ".join(names) for names in report.duplicates])
    if report.bad_shards is not None:
        click.echo(f"shards   {len(report.bad_shards):,} with a wrong checksum")
        _print_list([f"{name}: {reason}" for name, reason in report.bad_shards.items()])
    click.echo(f"corrupt  {len(report.corrupt):,} unreadable images ({100 * report.corrupt_share:.3g} %)")
    _print_list([f"{name}: {reason}" for name, reason in report.corrupt.items()])


def _print_list(lines: list[str]) -> None:
    for line in lines[:LISTED]:
        click.echo(f"         {line}")
    if len(lines) > LISTED:
        click.echo(f"         and {len(lines) - LISTED:,} more: --json has them all")
