"""Options of commands that several machines can run together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from swav_tf.training.cluster.rendezvous import ClusterAddress


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --nodes, --node-rank and --master."""
    for option in (
        click.option(
            "--master", metavar="HOST:PORT", help="Address of machine 0, which every machine can reach."
        ),
        click.option(
            "--node-rank", type=click.IntRange(min=0), metavar="N", help="This machine's number, 0 to N - 1."
        ),
        click.option(
            "--nodes", type=click.IntRange(min=1), metavar="N", help="Machines that train together."
        ),
    ):
        command = option(command)
    return command


def cluster_of(nodes: int | None, node_rank: int | None, master: str | None) -> ClusterAddress | None:
    """The cluster that the options describe, or None if they describe none."""
    if nodes is None and node_rank is None and master is None:
        return None
    if nodes is None or node_rank is None or master is None:
        raise click.UsageError("--nodes, --node-rank and --master belong together: give all three or none.")

    from swav_tf.training.cluster.rendezvous import ClusterAddress

    return ClusterAddress(nodes=nodes, node_rank=node_rank, master=master)
