"""`swav-tf data`: pack images into shards, check them, draw some of them."""

from __future__ import annotations

import click

from cli.commands.data import check, shard, subset


@click.group(short_help="Pack, check and draw from images.")
def command() -> None:
    """Pack images into shards, check images, draw a share of the labels.

    \b
    Examples:
      swav-tf data shard ILSVRC2012/train shards/train
      swav-tf data check shards/train --sheet sheet.png
      swav-tf data subset shards/train --share 0.1 -o ten_percent.txt
    """


command.add_command(shard.command, "shard")
command.add_command(check.command, "check")
command.add_command(subset.command, "subset")
