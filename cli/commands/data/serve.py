"""`swav-tf data serve`: crops for trainers on other machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.options import config_option, data_argument, override_option
from cli.quiet import load_tensorflow_quietly
from cli.recipes import with_arguments

if TYPE_CHECKING:
    from swav_tf.data.order import CropsByPosition
    from swav_tf.data.sources import ImageSource


@click.command(short_help="Make crops for trainers on other machines (tf.data service).")
@data_argument
@config_option
@override_option
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=5050,
    show_default=True,
    help="Port of the dispatcher, which trainers are given; 0: a free one.",
)
@click.option(
    "--host",
    metavar="HOST",
    help="Name or address of this machine that trainers can reach.  [default: its host name]",
)
@click.option(
    "--join",
    metavar="HOST:PORT",
    help="Work for the dispatcher that runs there.  [default: run the dispatcher here, and one worker]",
)
def command(
    data: str | None, config: str, overrides: tuple[str, ...], port: int, host: str | None, join: str | None
) -> None:
    """Make the crops of DATA, given as to `swav-tf pretrain`, for trainers with -o data.service=HOST:PORT.

    Recipe, settings and images must be those of the run: they decide the crops. One process is limited by
    Python's lock; start more with --join, on any machines that see the images. Trainers get the crops
    that they would have made themselves, even when a worker ends.

    The tf.data service has no authentication: open its ports to trusted machines only.

    \b
    Examples:
      swav-tf data serve shards/train -c one_gpu -o data.kind=tfrecord --port 5050
      swav-tf data serve shards/train -c one_gpu -o data.kind=tfrecord --join 10.0.0.5:5050
    """
    import signal
    import socket
    import threading

    source, crops = _what_to_serve(config, overrides, data)

    load_tensorflow_quietly()
    from swav_tf.data.service import Served

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    served = Served(crops, port=0 if join else port, join=join, host=host or socket.gethostname())
    click.echo(f"crops of {len(source):,} images: -o data.service={served.address}   (Ctrl-C ends)")
    ended.wait()
    served.close()


def _what_to_serve(
    config: str, overrides: tuple[str, ...], data: str | None
) -> tuple[ImageSource, CropsByPosition]:
    """Images and crops of the run that the options describe."""
    from swav_tf.data.order import CropsByPosition
    from swav_tf.data.sources import open_source
    from swav_tf.data.subset import read_subset
    from swav_tf.recipe.files import load_any_recipe
    from swav_tf.recipe.pretraining import Recipe

    recipe = load_any_recipe(config, with_arguments(overrides, {"data.path": data}))
    source = open_source(recipe.data)
    labelled = not isinstance(recipe, Recipe)
    if not isinstance(recipe, Recipe) and recipe.subset is not None:
        source = read_subset(recipe.subset, source)
    batch_size = recipe.train.batch_size
    if len(source) < batch_size:
        raise click.UsageError(f"{len(source):,} images do not fill a batch of {batch_size:,}")
    images_per_epoch = len(source) // batch_size * batch_size
    crops = CropsByPosition(recipe, source, images_per_epoch=images_per_epoch, labelled=labelled)
    return source, crops
