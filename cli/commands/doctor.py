"""`swav-tf doctor`: what is installed, what is missing, what conflicts."""

from __future__ import annotations

import click

from cli.options import Report, json_options


@click.command()
@click.option("--gpu", is_flag=True, help="Also list the GPUs that TensorFlow finds; takes several seconds.")
@json_options
def command(gpu: bool, report: Report) -> int:
    """Report versions, hardware, missing extras, and why ONNX Runtime cannot use a GPU.

    The exit code is 1 if another installed package provides one of swav-tf's import names.

    \b
    Examples:
      swav-tf doctor
      swav-tf doctor --gpu --json
    """
    from cli.installation import examine

    found = examine(gpu=gpu)
    report.show(found.as_dict(), found.lines())
    return 1 if found.clashes else 0
