"""`swav-tf data`: pack images into shards, check them, draw some of them, make crops for other machines."""

from __future__ import annotations

import click

from cli.commands.data import check, serve, shard, subset


@click.group(short_help="Pack, check, draw from and serve images.")
def command() -> None:
    """Pack images into shards, check images, draw a share of the labels, make crops for other machines.

    \b
    Examples:
      swav-tf data shard ILSVRC2012/train shards/train
      swav-tf data check shards/train --sheet sheet.png
      swav-tf data subset shards/train --share 0.1 -o ten_percent.txt
      swav-tf data serve shards/train -c one_gpu -o data.kind=tfrecord --port 5050
    """


command.add_command(shard.command, "shard")
command.add_command(check.command, "check")
command.add_command(subset.command, "subset")
command.add_command(serve.command, "serve")
