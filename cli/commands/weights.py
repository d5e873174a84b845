"""`swav-tf weights`: other people's weights, in and out."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import json_option, output_option, override_option, print_json

file_argument = click.argument("source", metavar="FILE", type=click.Path(path_type=Path))


@click.group(short_help="Import, export and identify weights of any SwAV or ResNet-50.")
def command() -> None:
    """Import, export and identify weights: SwAV, torchvision, timm, PASSL, VISSL, solo-learn, lightly.

    The format is recognised by the tensor names, not by the file name. PyTorch is not needed, and
    no code in a file is ever run.

    \b
    Examples:
      swav-tf weights show swav_800ep_pretrain.pth.tar
      swav-tf weights import swav_800ep_pretrain.pth.tar --to runs/released
      swav-tf weights export runs/first -o first.pth.tar
    """


@command.command(short_help="Identify a file of weights.")
@file_argument
@json_option
def show(source: Path, as_json: bool) -> None:
    """Tell whose weights FILE holds, of what model, and whether they are whole.

    FILE may be a run folder or a checkpoint too.

    \b
    Examples:
      swav-tf weights show swav_RN50w2_400ep_pretrain.pth.tar
      swav-tf weights show runs/first --json
    """
    from swav_tf.weights.describe import describe

    told = describe(source)
    if as_json:
        print_json(told.as_dict())
        return
    click.echo(f"{source}: {told.format}")
    click.echo(
        f"{told.model or 'no model that is known here'}; {told.tensors} tensors, {told.numbers:,} numbers"
    )
    _echo_left_out(told.left_out)
    for line in told.problems:
        click.echo(f"  {line}")
    if told.problems:
        click.echo("It cannot be imported whole: see above.")


@command.command("import", short_help="Turn somebody's weights into a run folder, or into a file of ours.")
@file_argument
@click.option(
    "--to",
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN_OR_FILE",
    help="New run folder, or new file that ends in .safetensors.",
)
@click.option(
    "-c",
    "--config",
    metavar="FILE_OR_NAME",
    help="Recipe of the run folder.  [default: the bundled one of this network and width, in float32]",
)
@override_option
@click.option(
    "--backbone-only", is_flag=True, help="Take only the backbone, whatever else is there or missing."
)
@click.option(
    "--backbone",
    type=click.Path(path_type=Path),
    metavar="RUN_OR_FILE",
    help="For a classifier alone: the pretraining run or file with the backbone that it was trained on.",
)
@click.option(
    "--classes",
    type=click.Path(path_type=Path),
    metavar="LIST",
    help="For a classifier: text file with a name for each class, one per line.  [default: numbers from 0]",
)
@json_option
def import_(
    source: Path,
    to: Path,
    config: str | None,
    overrides: tuple[str, ...],
    backbone_only: bool,
    backbone: Path | None,
    classes: Path | None,
    as_json: bool,
) -> None:
    """Turn the weights in FILE into a run folder, or into a file of ours.

    The model in the folder's recipe follows from the tensors' shapes. Every tensor must be there, in
    its shape, and none may be left over; otherwise everything wrong is listed and nothing is written.
    A classifier becomes the folder of a probe, for `predict`, `validate` and `export`.

    \b
    Examples:
      swav-tf weights import swav_800ep_pretrain.pth.tar --to runs/released
      swav-tf weights import resnet50.safetensors --to runs/timm -o data.evaluation.resize=232
      swav-tf weights import half.pth --to half.safetensors --backbone-only
      swav-tf weights import eval_linear.pth.tar --backbone runs/released --to runs/released_probe
    """
    from swav_tf.weights.convert import import_weights

    done = import_weights(
        source,
        to,
        config=config,
        overrides=overrides,
        backbone_only=backbone_only,
        backbone=backbone,
        classes=classes,
    )
    if as_json:
        print_json(
            {
                "output": str(done.path),
                "format": done.format,
                "model": str(done.sizes),
                "left_out": list(done.left_out),
                "recipe": done.recipe.name if done.recipe else None,
            }
        )
        return
    click.echo(f"{source}: {done.format}")
    click.echo(f"{done.path}: {done.sizes}")
    _echo_left_out(done.left_out)


@command.command(short_help="Write weights for PyTorch users.")
@click.argument("source", metavar="RUN_OR_FILE", type=click.Path(path_type=Path))
@output_option("New file; .pth.tar, .pth and .pt are PyTorch's, .safetensors is everybody's.", required=True)
@click.option(
    "--names",
    type=click.Choice(["swav", "torchvision", "swav_tf"]),
    help="swav: as the released SwAV; torchvision: a ResNet, its classifier as fc; swav_tf: ours.  "
    "[default: swav_tf for .safetensors, else swav]",
)
@json_option
def export(source: Path, output: Path, names: str | None, as_json: bool) -> None:
    """Write the newest checkpoint of a run, or a file of any known format, as one file.

    \b
    Examples:
      swav-tf weights export runs/first -o first.pth.tar
      swav-tf weights export runs/first -o backbone.pth --names torchvision
      swav-tf weights export runs/first -o first.safetensors
    """
    from swav_tf.weights.convert import NAMES, export_weights

    chosen = next((name for name in NAMES if name == names), None)
    done = export_weights(source, output, names=chosen)
    if as_json:
        print_json(
            {
                "output": str(done.path),
                "names": done.names,
                "tensors": done.tensors,
                "left_out": list(done.left_out),
            }
        )
        return
    click.echo(f"{done.path}: {done.tensors} tensors by the names of {done.names}")
    _echo_left_out(done.left_out)


def _echo_left_out(names: tuple[str, ...]) -> None:
    """Tensors that were not taken, by the first words of their names."""
    if not names:
        return
    counts: dict[str, int] = {}
    for name in names:
        stem = name.removeprefix("module.").partition(".")[0]
        counts[stem] = counts.get(stem, 0) + 1
    click.echo("left out: " + ", ".join(f"{stem} ({count})" for stem, count in counts.items()))
