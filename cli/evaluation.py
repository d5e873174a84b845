"""What the commands that look at features share: options, the model, the progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from evaluate.images import ImageSet
    from evaluate.runners.runner import Runner

LINE_SECONDS = 30.0

model_option = click.option(
    "--model",
    required=True,
    metavar="MODEL",
    help="Run folder of `swav-tf pretrain`, of which the newest checkpoint is taken, or a file of `swav-tf export`.",
)
provider_option = click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "tensorrt"]),
    help="ONNX Runtime's processor for an ONNX file: this one or an error.  [default: cpu]",
)
kind_option = click.option(
    "--kind",
    metavar="KIND",
    help="How DATA is read: class_folders, images, tfrecord, tfds or digits.  [default: as the model's images]",
)
split_option = click.option(
    "--split", metavar="NAME", help="Split of digits or a TFDS data set.  [default: the model's]"
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default="one a core",
    help="Threads that decode images.",
)
batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    default=128,
    show_default=True,
    help="Images that the model sees at once.",
)
max_bad_share_option = click.option(
    "--max-bad-share",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Share of unreadable images past which it is an error.  [default: the model's recipe's]",
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress on the terminal.")


def open_model(model: str, provider: str | None = None) -> Runner:
    """The model, TensorFlow loaded quietly if it is one that needs it."""
    from evaluate.runners.runner import is_run_folder, open_runner

    if is_run_folder(model):
        from cli.quiet import load_tensorflow_quietly

        load_tensorflow_quietly()
    return open_runner(model, provider=provider)


def open_data(runner: Runner, data: str | None, kind: str | None, split: str | None) -> ImageSet:
    """The images that the options name."""
    from evaluate.images import open_images

    return open_images(data, like=runner.data, kind=kind, split=split)


def output_option(meaning: str, **settings: Any) -> Callable[[Any], Any]:
    """`-o`: what a command writes."""
    return click.option(
        "-o", "--output", type=click.Path(path_type=Path), metavar="PATH", help=meaning, **settings
    )


@contextmanager
def image_progress(total: int, what: str, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Images/s and the time that is left; call it with the number of images that are done.

    A bar on a terminal; elsewhere, as in the log of a job, a line every LINE_SECONDS.
    """
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    if console.is_terminal:
        with _image_bar(total, what, console) as done:
            yield done
        return
    began = spoke = time.perf_counter()
    first: int | None = None  # what an earlier call did is not part of the speed

    def tell(images: int) -> None:
        nonlocal first, spoke
        now = time.perf_counter()
        first = images if first is None else first
        if now - spoke >= LINE_SECONDS and images > first:
            spoke = now
            speed = (images - first) / (now - began)
            left = timedelta(seconds=round((total - images) / speed))
            console.print(f"{what} {images:,}/{total:,}  {speed:,.0f} images/s  {left} left")

    yield tell


@contextmanager
def _image_bar(total: int, what: str, console: Console) -> Iterator[Callable[[int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        """Images a second."""

        def render(self, task: Task) -> Text:
            """The speed of late, or of all at the end."""
            speed = task.finished_speed or task.speed
            return Text("- images/s" if speed is None else f"{speed:,.0f} images/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        begun = False

        def done(images: int) -> None:
            nonlocal begun
            if begun:
                progress.update(task, completed=images)
            else:
                progress.reset(task, completed=images)  # done before, or while the model was traced
                begun = True

        yield done


@contextmanager
def share_progress(what: str, *, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A bar with the time that is left; call it with the share that is done, 0 to 1."""
    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(console=Console(stderr=True, quiet=quiet), disable=quiet)
    task = progress.add_task(what, total=1.0)
    begun = False

    def done(share: float) -> None:
        nonlocal begun
        if not begun:
            progress.start()  # not before: what is refused shall not look begun
            begun = True
        progress.update(task, completed=share)

    try:
        yield done
    finally:
        if begun:
            progress.stop()
