"""Errors as a person sees them: one message on stderr and an exit code, no traceback unless asked for."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback

import click

from cli.extras import extra_of
from swav_tf.plumbing.errors import SwavError

# What a disk may refuse to whoever writes; the remedies.
_DISK = {
    errno.ENOSPC: "Make room on the disk, or give another place.",
    errno.EFBIG: "Raise the limit of a file's size (ulimit -f), or give another place.",
    errno.EDQUOT: "Make room below your quota, or give another place.",
    errno.EROFS: "Give a place that can be written.",
    errno.EACCES: "Ask for the right to read and write there, or give another place.",
    errno.EPERM: "Ask for the right to read and write there, or give another place.",
    errno.EIO: "The disk or the network does not answer: look into the system's log.",
}
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run_and_report(command: click.Command, arguments: list[str]) -> int:
    """Run a command line; tell what went wrong on stderr; return the exit code."""
    try:
        result = command.main(arguments, prog_name="swav-tf", standalone_mode=False)
        if sys.stdout is not None:  # as it is where the shell closed it: `>&-`
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has gone (`| head`): nothing is left to tell
        _let_go_of_stdout()
        return 1
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        click.echo(f"Error: {message_of(error, arguments)}", err=True)
        _let_go_of_stdout()
        return error.exit_code if isinstance(error, SwavError) else 1


def _let_go_of_stdout() -> None:
    """Keeps Python from trying again at exit what cannot be written, and from telling it in its own way."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def message_of(error: Exception, arguments: list[str]) -> str:
    """What to tell a person about an error."""
    if isinstance(error, SwavError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name, arguments)):
        return f"this needs {error.name}, which is not installed. Run: pip install 'swav-tf[{extra}]'"
    if isinstance(error, OSError) and error.errno in _DISK:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        return f"{what}. {_DISK[error.errno]} Then give the same command again."
    again = shlex.join(["swav-tf", "--debug", *arguments])
    return f"{type(error).__name__}: {error}\nThis was not foreseen; for the traceback run: {again}"
