"""Progress of a command on stderr: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from swav_tf.plumbing.log import console

LINE_SECONDS = 30.0
_LOADING = "Loading TensorFlow ..."


def load_tensorflow_quietly() -> None:
    """Import TensorFlow without its start-up messages; the notice disappears afterwards."""
    shown = sys.stderr.isatty() and "tensorflow" not in sys.modules
    if shown:
        sys.stderr.write(_LOADING)
        sys.stderr.flush()
    try:
        from swav_tf.model.startup import start

        start()
    finally:
        if shown:
            sys.stderr.write(f"\r{' ' * len(_LOADING)}\r")
            sys.stderr.flush()


@contextmanager
def image_progress(total: int, what: str, *, quiet: bool) -> Iterator[Callable[..., None]]:
    """Yield a function to call with the number of finished images; show images/s and the remaining time.

    A call with another `what` begins the next stage, which goes through all images again. On a terminal this is a
    bar; elsewhere, such as in a job's log, a line every LINE_SECONDS.
    """
    from rich import progress as bars

    as_lines = not quiet and not console().is_terminal
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[speed]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console(), disable=quiet or as_lines) as progress:
        task = progress.add_task(what, total=total, speed="")
        start = reported = time.perf_counter()
        stage, first = "", 0

        def update(images: int, what: str = what) -> None:
            nonlocal stage, first, start, reported
            now = time.perf_counter()
            if what != stage:  # images before this call do not count towards the speed
                stage, first, start = what, images, now
                progress.reset(task, completed=images, description=what)
                return
            rate = (images - first) / max(now - start, 1e-9)
            progress.update(task, completed=images, speed=f"{rate:,.0f} images/s")
            if as_lines and now - reported >= LINE_SECONDS and images > first:
                reported = now
                left = timedelta(seconds=round((total - images) / rate))
                console().print(f"{what} {images:,}/{total:,}  {rate:,.0f} images/s  {left} left")

        yield update


@contextmanager
def share_progress(what: str, *, quiet: bool) -> Iterator[Callable[[float], None]]:
    """Yield a function to call with the finished share, 0 to 1; show a bar, or lines, as `image_progress` does."""
    from rich.progress import Progress

    as_lines = not quiet and not console().is_terminal
    with Progress(console=console(), disable=quiet or as_lines) as progress:
        task, reported = progress.add_task(what, total=1.0), time.perf_counter()

        def update(share: float) -> None:
            nonlocal reported
            progress.update(task, completed=share)
            if as_lines and time.perf_counter() - reported >= LINE_SECONDS:
                reported = time.perf_counter()
                console().print(f"{what} {100 * share:.0f} %")

        yield update
