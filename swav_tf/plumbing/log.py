"""The logger `swav_tf`, and how its messages reach a terminal."""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("swav_tf")


@cache
def console() -> Console:
    """Return the console on stderr that messages and progress bars share, so that neither garbles the other."""
    from rich.console import Console

    # A terminal wraps inside words; in a log or a pipe, lines stay as they are.
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


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
