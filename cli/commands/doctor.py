"""`swav-tf doctor`: what is installed, what is missing, what is in the way."""

from __future__ import annotations

import click

from cli.options import json_option, print_json


@click.command(short_help="Tell versions, machine, missing extras, name clashes.")
@click.option("--gpu", is_flag=True, help="Ask TensorFlow for its GPUs too (loads it, some seconds).")
@json_option
def command(gpu: bool, as_json: bool) -> int:
    """Tell versions, machine, missing extras, and what keeps ONNX Runtime from a GPU.

    Exit code 1 where another package owns one of our import names.

    \b
    Examples:
      swav-tf doctor
      swav-tf doctor --gpu --json
    """
    from cli.installation import examine

    report = examine(gpu=gpu)
    if as_json:
        print_json(report.as_dict())
    else:
        click.echo("\n".join(report.lines()))
    return 1 if report.clashes else 0
