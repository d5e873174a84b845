"""Turn exceptions into one message on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

import click

from swav_tf.plumbing.errors import SwavError, report_of
from swav_tf.plumbing.log import show_message

# Remedies for what a disk may refuse.
_DISK = {
    errno.ENOSPC: "Free some space, or choose another location.",
    errno.EFBIG: "Raise the file size limit (ulimit -f), or choose another location.",
    errno.EDQUOT: "Free some of your quota, or choose another location.",
    errno.EROFS: "Choose a writable location.",
    errno.EACCES: "Obtain permission to read and write there, or choose another location.",
    errno.EPERM: "Obtain permission to read and write there, or choose another location.",
    errno.EIO: "The disk or the network does not respond: see the system log.",
}
# `onnx-gpu` and `gpu` install modules of `onnx` and `train` too; they are never recommended for a missing module.
EXTRAS = {
    "train": (
        "tensorflow",
        "keras",
        "keras_cv",
        "tensorflow_datasets",
        "tensorboard",
        "importlib_resources",
    ),
    "onnx": ("onnxruntime",),
    "export": ("onnx", "tf2onnx"),
    "report": ("matplotlib", "sklearn"),
    "serve": ("orjson", "prometheus_client", "python_multipart", "starlette", "uvicorn"),
    "search": ("faiss",),
    "ray": ("ray",),
    "parquet": ("pyarrow",),
    "tensorrt": ("tensorrt", "cuda"),
}
INTERRUPTED = 130  # 128 + SIGINT, as in shells


def run_and_report(command: click.Command, arguments: list[str]) -> int:
    """Run a command line, report what failed on stderr and return the exit code."""
    try:
        result = command.main(arguments, prog_name="swav-tf", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption):
            error = _with_setting(error)
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        _discard_stdout()
        return 1
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        known = error if isinstance(error, SwavError) else None
        show_message(report_of(known) if known else f"Error: {message_of(error, arguments)}")
        _discard_stdout()
        return known.exit_code if known else 1


# Names of settings in other tools, and the ends of their paths in our recipes.
_ALIASES = {
    "amp": ".precision", "arch": "backbone.name", "backbone": "backbone.name", "dtype": ".precision",
    "learning_rate": "learning_rate", "lr": "learning_rate", "num_workers": "data.threads",
    "queue": "queue.length", "queue_length": "queue.length", "workers": "data.threads",
}  # fmt: skip


def _with_setting(error: click.NoSuchOption) -> click.NoSuchOption:
    """Return the error with the setting of the recipe that the unknown option means, if there is one."""
    if error.ctx is None or "overrides" not in [option.name for option in error.ctx.command.params]:
        return error
    from swav_tf.recipe.explain import describe_settings
    from swav_tf.recipe.files import KINDS

    name = error.option_name.lstrip("-").replace("-", "_")
    settings = describe_settings(KINDS.get(str(error.ctx.info_name), KINDS["pretrain"]))
    found = [path for path in settings if path.endswith(_ALIASES.get(name, f".{name}"))]
    if not found:
        return error
    choices = " or ".join(f"-o {path}=..." for path in found[:3])
    message = f"No such option '{error.option_name}'. It is a setting of the recipe: {choices}"
    return click.NoSuchOption(error.option_name, message, ctx=error.ctx)


def _discard_stdout() -> None:
    """Keep Python from writing the rest at exit, which would fail again with a second message."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def message_of(error: Exception, arguments: list[str]) -> str:
    """Return the message for an error that is none of swav-tf's own."""
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name, arguments)):
        return f"{error.name} is not installed. Run: pip install 'swav-tf[{extra}]'"
    if isinstance(error, OSError) and error.errno in _DISK:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        return f"{what}. {_DISK[error.errno]} Then run the same command again."
    again = shlex.join(["swav-tf", "--debug", *arguments])
    return f"{type(error).__name__}: {error}\nThis is a bug or an unexpected input. For the traceback, run: {again}"


def extra_of(module: str | None, arguments: Sequence[str] = ()) -> str | None:
    """Return the extra that installs a missing module for a command line; None if none does."""
    package = (module or "").partition(".")[0]
    if package == "onnx" and any("tensorrt" in word for word in arguments):
        return "tensorrt"  # building an engine: `export` would overwrite ONNX Runtime for GPUs with that for CPUs
    if package == "pyarrow" and "index" in arguments:
        return "search"  # has FAISS too, which would be missing next
    return next((extra for extra, modules in EXTRAS.items() if package in modules), None)
