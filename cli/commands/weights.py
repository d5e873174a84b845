"""`swav-tf weights`: import, export and identify weights."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import click

from cli.options import NEW_PATH, PATH, Report, json_options, output_option
from cli.progress import load_tensorflow_quietly
from cli.recipe_options import best_option, config_option, override_option

file_argument = click.argument("source", metavar="FILE", type=PATH)
prefix_option = click.option(
    "--prefix",
    metavar="NAME",
    show_default="the main network of the file",
    help="Use only the tensors below NAME, a name prefix or dictionary key such as student; a leading module. is "
    "ignored.",
)


@click.group()
def command() -> None:
    """Import, export and identify weights: SwAV, torchvision, timm, PASSL, VISSL, solo-learn, lightly, MoCo, DINO.

    The format is recognized by the tensor names, not by the file name. PyTorch is not needed, and no code in a file
    is ever executed.

    \b
    Examples:
      swav-tf weights show swav_800ep_pretrain.pth.tar
      swav-tf weights import swav_800ep_pretrain.pth.tar --to runs/released
      swav-tf weights export runs/first --output first.pth.tar
    """


@command.command(short_help="Identify a file of weights.")
@file_argument
@prefix_option
@json_options
def show(source: Path, prefix: str | None, report: Report) -> None:
    """Report the format of the weights in FILE, their model, and whether they are complete.

    FILE may also be a run folder or a checkpoint.

    \b
    Examples:
      swav-tf weights show swav_RN50w2_400ep_pretrain.pth.tar
      swav-tf weights show dino_full_checkpoint.pth --prefix student
      swav-tf weights show runs/first --json
    """
    from swav_tf.weights.convert import describe

    found = describe(source, prefix=prefix)
    lines = [
        f"{source}: {found.format}",
        f"{found.model or 'unknown model'}; {found.tensors} tensors, {found.numbers:,} numbers",
        *_left_out(found.left_out),
        *(f"  {problem}" for problem in found.problems),
    ]
    if found.problems:
        lines.append(
            "These weights are incomplete, not finite or do not fit, see above; they cannot be imported as a whole."
        )
    report.show(dataclasses.asdict(found), lines)


@command.command("import", short_help="Convert weights into a run folder or a .safetensors file.")
@file_argument
@click.option(
    "--to",
    required=True,
    type=NEW_PATH,
    metavar="RUN_OR_FILE",
    help="New run folder, or new file that ends in .safetensors.",
)
@config_option(
    required=False,
    show_default="the bundled recipe for this network and width, in float32",
    help="Recipe of the run folder.",
)
@override_option
@click.option(
    "--backbone-only", is_flag=True, help="Import only the backbone, whatever else the file has or lacks."
)
@click.option(
    "--backbone",
    type=PATH,
    metavar="RUN_OR_FILE",
    help="For a file with only a classifier: the pretraining run or file with the backbone it was trained on.",
)
@click.option(
    "--classes",
    type=PATH,
    metavar="LIST",
    show_default="numbers from 0",
    help="For a classifier: text file with the class names, one per line.",
)
@prefix_option
@json_options
def import_(
    source: Path,
    to: Path,
    config: str | None,
    overrides: tuple[str, ...],
    backbone_only: bool,
    backbone: Path | None,
    classes: Path | None,
    prefix: str | None,
    report: Report,
) -> None:
    """Convert the weights in FILE into a run folder or a .safetensors file.

    The model in the folder's recipe follows from the tensors' shapes. Every tensor must be present with the right
    shape, and none may be left over; otherwise all problems are listed and nothing is written. A classifier,
    including torchvision's fc, becomes the folder of a probe, for `predict`, `validate` and `export`; --backbone-only
    omits it.

    \b
    Examples:
      swav-tf weights import swav_800ep_pretrain.pth.tar --to runs/released
      swav-tf weights import resnet50.safetensors --to runs/timm --backbone-only -o data.evaluation.resize=232
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
        prefix=prefix,
    )
    supervised = done.sizes.classes is not None and backbone is None and done.recipe is not None
    report.show(
        {
            "output": str(done.path),
            "format": done.format,
            "model": str(done.sizes),
            "left_out": list(done.left_out),
            "recipe": done.recipe.name if done.recipe else None,
        },
        [
            f"{source}: {done.format}",
            f"{done.path}: {done.sizes}",
            *_left_out(done.left_out),
            *(["For features and pretraining import its backbone: --backbone-only."] if supervised else []),
        ],
    )


@command.command(short_help="Write weights for PyTorch, Keras, TensorFlow Serving, timm and KerasHub.")
@click.argument("source", metavar="RUN_OR_FILE", type=PATH)
@output_option(
    "New file: .pth.tar, .pth or .pt for PyTorch, .safetensors or .keras; a folder for savedmodel and timm.",
    required=True,
)
@click.option(
    "--to",
    "form",
    type=click.Choice(["swav", "torchvision", "swav_tf", "keras", "savedmodel", "timm"]),
    show_default="by the ending of OUTPUT: swav, swav_tf for .safetensors, or keras",
    help="swav: names of the released SwAV files; torchvision: a ResNet with its classifier as fc; swav_tf: native "
    "names; keras: a .keras file that loads without swav-tf; savedmodel: a folder for TensorFlow Serving; timm: a "
    "folder for timm and KerasHub.",
)
@best_option
@json_options
def export(source: Path, output: Path, form: str | None, best: bool, report: Report) -> None:
    """Write the newest checkpoint of a run, or a file of any known format, for another library.

    The networks for Keras and TensorFlow Serving take uint8 images (n, height, width, 3), in RGB, and return
    features; those of a probe or fine-tuning run also logits.

    \b
    Examples:
      swav-tf weights export runs/first --output first.pth.tar
      swav-tf weights export runs/first --output backbone.pth --to torchvision
      swav-tf weights export runs/first --output first.safetensors
      swav-tf weights export runs/first --output first.keras
      swav-tf weights export runs/first --to savedmodel --output models/first/1
      swav-tf weights export runs/first --to timm --output first_timm
    """
    from export.libraries import LIBRARIES, export_for
    from swav_tf.weights.convert import NAMES, export_weights

    form = form or ("keras" if output.suffix == ".keras" else None)
    library = next((known for known in LIBRARIES if known == form), None)
    if library is not None:
        if library != "timm":
            load_tensorflow_quietly()
        export_for(library, source, output, best=best)
        report.show({"output": str(output), "library": library}, [f"{output}: for {library}"])
        return
    names = next((known for known in NAMES if known == form), None)
    done = export_weights(source, output, names=names, best=best)
    report.show(
        {
            "output": str(done.path),
            "names": done.names,
            "tensors": done.tensors,
            "left_out": list(done.left_out),
        },
        [f"{done.path}: {done.tensors} tensors with the names of {done.names}", *_left_out(done.left_out)],
    )


def _left_out(names: tuple[str, ...]) -> list[str]:
    """Count the tensors that were not used, by the first part of their names."""
    counts = Counter(name.removeprefix("module.").partition(".")[0] for name in names)
    return ["left out: " + ", ".join(f"{stem} ({count})" for stem, count in counts.items())] if counts else []
