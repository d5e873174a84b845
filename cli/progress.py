"""Progress of a command on stderr: a bar on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from swav_tf.plumbing.log import console

if TYPE_CHECKING:
    from evaluate.benchmark.schema import Cell

LINE_SECONDS = 30.0


class ImageProgress(Protocol):
    """What `image_progress` yields."""

    def __call__(self, images: int, what: str = ...) -> None:
        """Show that `images` of all are done, in the stage `what`."""


@contextmanager
def image_progress(total: int, what: str, *, quiet: bool) -> Iterator[ImageProgress]:
    """Yield a function to call with the number of finished images; show images/s and the remaining time.

    With another `what` it begins again: all images go through several stages. On a terminal this is a bar;
    elsewhere, such as in a job's log, a line every LINE_SECONDS.
    """
    if quiet:
        yield lambda images, what=what: None
    elif console().is_terminal:
        with _image_bar(total, what) as update:
            yield update
    else:
        yield _image_lines(total, what)


def _image_lines(total: int, what: str) -> ImageProgress:
    start = reported = time.perf_counter()
    first, stage = None, what  # the images of an earlier call do not count towards the speed

    def update(images: int, what: str = what) -> None:
        nonlocal first, stage, start, reported
        now = time.perf_counter()
        if what != stage:
            first, stage, start = None, what, now
        first = images if first is None else first
        if now - reported >= LINE_SECONDS and images > first:
            reported = now
            speed = (images - first) / (now - start)
            left = timedelta(seconds=round((total - images) / speed))
            console().print(f"{what} {images:,}/{total:,}  {speed:,.0f} images/s  {left} left")

    return update


@contextmanager
def _image_bar(total: int, what: str) -> Iterator[ImageProgress]:
    from rich import progress as bars
    from rich.text import Text

    class Speed(bars.ProgressColumn):
        """Images a second: recent while running, overall at the end."""

        def render(self, task: bars.Task) -> Text:
            """Return the speed as text."""
            speed = task.finished_speed or task.speed
            return Text("- images/s" if speed is None else f"{speed:,.0f} images/s")

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        Speed(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console()) as progress:
        task = progress.add_task(what, total=total)
        started = ""

        def update(images: int, what: str = what) -> None:
            nonlocal started
            if started == what:
                progress.update(task, completed=images)
            else:
                # The first images were finished by an earlier call, or while the model was traced.
                progress.reset(task, completed=images, description=what)
                started = what

        yield update


@contextmanager
def share_progress(what: str, *, quiet: bool) -> Iterator[Callable[[float], None]]:
    """Yield a function to call with the finished share, 0 to 1; show a bar with the remaining time."""
    from rich.progress import Progress

    with Progress(console=console(), disable=quiet) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda share: progress.update(task, completed=share)


@contextmanager
def cell_progress(*, quiet: bool) -> Iterator[Callable[[Cell, int, int], None]]:
    """Yield the `before_each` of `run_benchmark`; show a bar on a terminal, elsewhere a line per process."""
    from rich.progress import Progress

    if quiet:
        yield lambda cell, done, total: None
    elif not console().is_terminal:
        yield lambda cell, done, total: console().print(
            f"{done + 1}/{total}  {cell.model} {cell.label}", markup=False
        )
    else:
        with Progress(console=console(), transient=True) as progress:
            task = progress.add_task("", total=None)
            yield lambda cell, done, total: progress.update(
                task, completed=done, total=total, description=f"{cell.model} {cell.label}"
            )
