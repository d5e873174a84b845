"""The console script `swav-tf`. A command's module is imported when the command runs, so that `--help` is quick."""

from __future__ import annotations

import difflib
import importlib
import io
import sys
from collections.abc import Sequence
from typing import Final

import click

from cli.errors import run_and_report

# In the order in which a project needs them.
COMMANDS: Final = {
    "Get started": {
        "demo": "Watch SwAV learn on handwritten digits (minutes, no GPU).",
        "doctor": "Report versions, hardware, missing extras and name conflicts.",
        "config": "List, show and check recipes.",
        "crops": "Draw images and their crops on a contact sheet.",
        "data": "Check images, pack them into shards, draw subsets.",
    },
    "Train": {
        "pretrain": "Train SwAV on images.",
        "report": "Show a pretraining run on one HTML page.",
        "probe": "Train a linear classifier on frozen features.",
        "finetune": "Train a pretrained network on labeled images.",
        "profile": "Find the bottleneck of a recipe on this machine.",
        "plan": "Estimate hours, memory and network load on other machines.",
    },
    "Use the features": {
        "features": "Compute features of images and save them in a file.",
        "knn": "Measure the k-NN accuracy of features.",
        "clusters": "Assign images to prototypes and show the nearest images of each.",
        "similar": "Find the images most similar to one image.",
        "index": "Index features for search among millions of images.",
        "duplicates": "Find near-duplicates and exact copies among images.",
        "outliers": "Find the most unusual images.",
        "plot": "Draw a 2-D map of features.",
        "predict": "Predict the classes of images.",
        "validate": "Measure the accuracy of a classifier.",
    },
    "Deploy": {
        "weights": "Import, export and identify weights of SwAV and other ResNets.",
        "export": "Write ONNX files and TensorRT engines, verified against Keras.",
        "verify": "Check that exported files reproduce Keras' features.",
        "serve": "Serve features and similar images over HTTP.",
        "benchmark": "Measure the speed of exported files.",
    },
}
SUMMARIES: Final = {name: summary for commands in COMMANDS.values() for name, summary in commands.items()}


class LazyCommands(click.Group):
    """Import `cli.commands.NAME` and its `command` only when that command is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in SUMMARIES:
            return None
        command: click.Command = importlib.import_module(f"cli.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest one."""
        near = difflib.get_close_matches(args[0], SUMMARIES, n=1)
        if near and args[0] not in SUMMARIES:
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{near[0]}'?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by purpose, without importing them."""
        width = max(map(len, SUMMARIES))
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), summary) for name, summary in commands.items()])


def _show_version(context: click.Context, option: click.Parameter, requested: bool) -> None:
    # click's own version option fails where the package is not installed.
    if requested:
        from swav_tf.plumbing.system import version_of

        click.echo(f"swav-tf, version {version_of('swav-tf')}")
        context.exit()


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}
_version_option = click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
    help="Show the version and exit.",
)  # fmt: skip


@click.group(cls=LazyCommands, context_settings=_SETTINGS)
@click.option("--debug", is_flag=True, help="Show the traceback of an error; goes before the command.")
@_version_option
def swav_tf(debug: bool) -> None:
    """SwAV self-supervised pretraining in TensorFlow.

    \b
    Examples:
      swav-tf demo                                     watch SwAV learn on handwritten digits
      swav-tf config list                              list the bundled recipes
      swav-tf pretrain IMAGES -c one_gpu --run-dir runs/first
      swav-tf features IMAGES --model runs/first --output features.npy
      swav-tf export runs/first --precision fp32,int8 --output exported
      swav-tf pretrain --help                          explain one command
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 failure, 2 usage error, 75 transient failure, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a name that the terminal cannot show must not cause an error
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run_and_report(swav_tf, sys.argv[1:] if arguments is None else list(arguments)))


if __name__ == "__main__":
    main()
