"""`swav-tf data`: check images, pack them into shards, draw subsets."""

from __future__ import annotations

import click

from cli.commands.data import check, shard, subset


@click.group()
def command() -> None:
    """Check images, pack them into shards, draw subsets of labeled images.

    \b
    Examples:
      swav-tf data check photos/
      swav-tf data shard ILSVRC2012/train shards/train
      swav-tf data subset shards/train --share 0.1 --output ten_percent.txt
    """


command.add_command(check.command, "check")
command.add_command(shard.command, "shard")
command.add_command(subset.command, "subset")
