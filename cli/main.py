"""The console script `swav-tf`. Commands are imported when asked for, so that `--help` is quick."""

from __future__ import annotations

import importlib
import io
import pkgutil
import sys
from collections.abc import Sequence
from typing import Final

import click

from cli import commands
from cli.errors import run_and_report

# In the order in which a project needs them.
SECTIONS: Final = {
    "Begin": ("demo", "doctor", "config", "crops", "data"),
    "Train": ("pretrain", "probe", "finetune", "profile", "plan"),
    "Use the features": ("features", "knn", "clusters", "similar", "plot", "predict", "validate"),
    "Deploy": ("weights", "export", "verify", "benchmark", "compare"),
}


class LazyCommands(click.Group):
    """One module of `cli.commands` for each command, with a `command` in it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the modules."""
        return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"cli.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by what they are for, each in one line."""
        width = max(map(len, self.list_commands(ctx)))
        for heading, names in SECTIONS.items():
            rows = []
            for name in names:
                command = self.get_command(ctx, name)
                assert command is not None, name
                rows.append((name.ljust(width), command.get_short_help_str(limit=formatter.width)))
            with formatter.section(heading):
                formatter.write_dl(rows)


def _show_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    """Not click's own option, which fails where the package is not installed."""
    if wanted:
        from swav_tf.plumbing.system import version_of

        click.echo(f"swav-tf, version {version_of('swav-tf')}")
        context.exit()


@click.group(
    cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error. Stands before the command.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def swav_tf(debug: bool) -> None:
    """SwAV self-supervised pretraining in TensorFlow.

    \b
    Examples:
      swav-tf demo                                     watch SwAV learn on handwritten digits
      swav-tf config list                              the recipes that come with it
      swav-tf pretrain IMAGES -c one_gpu --run-dir runs/first
      swav-tf features IMAGES --model runs/first -o features.npy
      swav-tf export runs/first --precision fp32,int8 -o exported
      swav-tf pretrain --help                          all about one command
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 asked for wrongly, 130 interrupted."""
    _buffer_stdout()
    sys.exit(run_and_report(swav_tf, sys.argv[1:] if arguments is None else list(arguments)))


def _buffer_stdout() -> None:
    """Undoes PYTHONUNBUFFERED, which containers set: of what a full disk takes in part, the rest would be lost.

    Python does not look at how much was written then, and the exit code would be 0.
    """
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper) and isinstance(stdout.buffer, io.RawIOBase):
        encoding, errors = stdout.encoding, stdout.errors
        buffer = io.BufferedWriter(stdout.detach())
        sys.stdout = io.TextIOWrapper(buffer, encoding, errors, line_buffering=True)


if __name__ == "__main__":
    main()
