"""How far a command is, on stderr: a bar on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from evaluate.benchmark.schema import Cell

LINE_SECONDS = 30.0


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


@contextmanager
def cell_progress(*, quiet: bool) -> Iterator[Callable[[Cell, int, int], None]]:
    """A bar on a terminal, a line for each process elsewhere; pass it as `before_each` to `run_benchmark`."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield lambda cell, done, total: console.print(
            f"{done + 1}/{total}  {cell.model} {cell.label}", markup=False
        )
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda cell, done, total: progress.update(
            task, completed=done, total=total, description=f"{cell.model} {cell.label}"
        )
