"""The logger `swav_tf`, and how its messages reach a terminal."""

from __future__ import annotations

import errno
import logging
import os
import sys
import termios
from functools import cache
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

log = logging.getLogger("swav_tf")


@cache
def console() -> Console:
    """Return the console on stderr that messages and progress bars share, so that neither garbles the other."""
    from rich.console import Console

    class OnTerminal(Console):
        @property  # type: ignore[misc]  # nothing sets it
        def file(self) -> Any:
            return _UntilItCloses(super().file)

    # A terminal wraps inside words; in a log or a pipe, lines stay as they are.
    return OnTerminal(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


class _UntilItCloses:
    """A stream that discards what a closed terminal refuses: the SIGHUP that stops the run may come after it."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._unless_closed(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._unless_closed(self._stream.flush)

    def _unless_closed(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            leave_closed_terminal()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def leave_closed_terminal() -> None:
    """Discard further output to a terminal that has closed: it refuses every write, which would end the run."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:  # other errors: not a terminal
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def show_message(text: str) -> None:
    """Print a message on stderr; a terminal wraps it between words."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr)
        return
    from rich.text import Text

    console().print(Text(text))


@cache
def log_once(level: int, text: str) -> None:
    """Log a message unless this process has logged it before: a command opens its images more than once."""
    log.log(level, "%s", text)


def show_log(level: int = logging.INFO) -> None:
    """Print messages of at least this level on stderr. Applications that configure logging need not call this."""
    log.setLevel(level)
    if not log.handlers:
        log.addHandler(_ConsoleHandler())
        log.propagate = False


class _ConsoleHandler(logging.Handler):
    """Print plain lines; warnings and errors carry their level."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        console().print(Text.assemble((prefix, "yellow"), record.getMessage()))
