"""`swav-tf demo`: train on real data within minutes."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import FOLDER, Report, report_options, run_dir_option, seed_option
from cli.progress import load_tensorflow_quietly


@click.command()
@run_dir_option(
    "Folder for checkpoints, metrics, summary, exported files and pages.",
    default=Path("runs/demo"),
)
@click.option(
    "--data",
    type=FOLDER,
    show_default="handwritten digits",
    help="Folder with subfolders train and test, each with one folder per class.",
)
@seed_option("weights, image order and crops", default=31)
@click.option("--no-export", is_flag=True, help="Stop after report.html: no ONNX files, no benchmark.")
@report_options
def command(run_dir: Path, data: Path | None, seed: int, no_export: bool, report: Report) -> None:
    """Train on scikit-learn's handwritten digits for a few minutes on a CPU, and measure what was learned.

    report.html in the run folder shows what was learned. The network is then exported in float32 and int8, compared
    with Keras and timed; benchmark.html shows the speed. This second part requires the extra `export`. An
    interrupted demo resumes; a complete one is moved aside and runs again.

    \b
    Examples:
      swav-tf demo
      swav-tf demo --no-export
      swav-tf demo --data cifar10/ --run-dir runs/demo_cifar10
      swav-tf demo --seed 7 --run-dir runs/demo7 --json
    """
    load_tensorflow_quietly()
    from cli.demo import run_demo

    report.show(run_demo(run_dir=run_dir, data=data, seed=seed, export=not no_export, quiet=report.quiet))
