"""The logger `swav_tf`, and how its messages reach a terminal."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("swav_tf")


@cache
def console() -> Console:
    """Return the console on stderr that messages and progress bars share, so that neither garbles the other."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


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
