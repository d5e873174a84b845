"""`swav-tf demo`: SwAV learns on real data within minutes."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import json_option, print_json
from cli.quiet import load_tensorflow_quietly


@click.command(short_help="Watch SwAV learn on handwritten digits (minutes, no GPU).")
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for checkpoints, metrics, summary and picture.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="N",
    default=31,
    show_default=True,
    help="Seed of weights, order and crops.",
)
@json_option
def command(run_dir: Path, seed: int, as_json: bool) -> None:
    """Train on scikit-learn's handwritten digits and measure what was learned, within five minutes on a CPU.

    \b
    Examples:
      swav-tf demo
      swav-tf demo --seed 7 --run-dir runs/demo7 --json
    """
    load_tensorflow_quietly()
    from cli.demo import run_demo

    summary = run_demo(run_dir=run_dir, seed=seed, quiet=as_json)
    if as_json:
        print_json(summary)
