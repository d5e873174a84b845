"""`swav-tf verify`: check that exported files reproduce Keras' features, without TensorFlow."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.model_options import contract_options, provider_option
from cli.options import (
    KINDS,
    PATH,
    ImageChoice,
    Report,
    batch_option,
    count_option,
    is_default,
    json_options,
    option_group,
    threads_option,
)
from cli.tables import parity_lines

if TYPE_CHECKING:
    from evaluate.backends.backend import Backend
    from evaluate.backends.foreign import Contract
    from export.reference import Views


@click.command()
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="DIR|FILES...")
@option_group(
    "images",
    ImageChoice,
    click.option(
        "--images", "data", metavar="DATA", show_default="those in reference.npz",
        help="Labeled images for the k-NN accuracy; with --against, the images to compare on, with or without labels.",
    ),
    click.option("--kind", type=click.Choice(KINDS), show_default="the model's", help="Kind of data in DATA."),
    click.option("--split", metavar="NAME", show_default="the model's", help="Split of DATA."),
)  # fmt: skip
@count_option("--limit", least=2, default=2000, help="Use at most N images of DATA, drawn at random.")
@click.option(
    "--against",
    type=PATH,
    metavar="FILE",
    help="Compare one ONNX file with FILE instead of with reference.npz. Both may be third-party files.",
)
@contract_options
@provider_option
@threads_option("Threads that compute a batch on a CPU")
@batch_option
@json_options
def command(
    paths: tuple[Path, ...],
    images: ImageChoice,
    limit: int,
    against: Path | None,
    contract: Contract | None,
    provider: str | None,
    threads: int,
    batch: int,
    report: Report,
) -> int:
    """Run exported ONNX files and engines on the images of reference.npz, and compare their outputs with Keras'.

    \b
    fp32  relative error <= 1e-5
    fp16  cosine >= 0.9999 for every image
    int8  centered cosine >= 0.98 (median) and >= 0.9 (every image), 90 % of the
          10 nearest images kept, k-NN accuracy lower by at most 0.5 points beyond
          sampling error
    fp32 by OpenVINO in bfloat16: cosine >= 0.999 for every image, centered cosine
          >= 0.995 (median), 95 % of the 10 nearest images kept

    Limits that could not be applied, for example without labels, are listed. A file that was changed after the
    export fails, too. The results are written to parity.json; if that is impossible, as in a read-only folder, a
    warning says so. The exit code is 1 if a file fails. With --against, one file is compared with another, and nothing
    is written.

    \b
    Examples:
      swav-tf verify exported/
      swav-tf verify exported/model-fp32.onnx exported/model-int8-cpu.onnx --images digits --split test
      swav-tf verify exported/model-int8-cpu.onnx --against exported/model-fp32.onnx --images photos/
      swav-tf verify exported/model-fp32.onnx --against resnet50.onnx --images photos/ --view 256,224
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    """
    if against is not None:
        return _against(paths, against, images, contract, provider, threads, (limit, batch), report)
    if contract is not None:
        raise click.UsageError("--view, --mean, --std and --output-name require --against.")
    if images.data is None and (images != ImageChoice(None) or not is_default("limit")):
        raise click.UsageError("--kind, --split and --limit require --images.")
    from export.verify import find_artifacts, verify

    artifacts = find_artifacts(paths)
    draw = None if images.data is None else partial(_draw_labeled, images, limit)
    results, text = verify(
        artifacts, provider=provider or "cpu", threads=threads, batch_size=batch, draw=draw
    )
    report.show(json.loads(text), parity_lines({name: parity for name, (_, parity) in results.items()}))
    return 0 if all(parity.passed for _, parity in results.values()) else 1


def _against(
    paths: tuple[Path, ...],
    against: Path,
    images: ImageChoice,
    contract: Contract | None,
    provider: str | None,
    threads: int,
    counts: tuple[int, int],
    report: Report,
) -> int:
    """Compare one file with another; `counts` are the images in all and at once."""
    from evaluate.backends.foreign import is_foreign
    from evaluate.backends.onnx_backend import OnnxBackend
    from export.verify import compare_files

    if len(paths) != 1 or images.data is None:
        raise click.UsageError("--against compares one FILE, and requires --images DATA.")
    foreign = is_foreign(paths[0]), is_foreign(against)

    def opened(path: Path, is_third_party: bool) -> OnnxBackend:
        # Files from `swav-tf export` contain a contract of their own, so the options are for the other one.
        own = contract if is_third_party or not any(foreign) else None
        return OnnxBackend(path, provider=provider or "cpu", threads=threads, contract=own)

    file, other = opened(paths[0], foreign[0]), opened(against, foreign[1])
    parity = compare_files(file, other, images.open(other.data), count=counts[0], batch_size=counts[1])
    document = {"file": file.facts.as_dict(), "against": other.facts.as_dict(), **parity.as_dict()}
    report.show(document, parity_lines({paths[0].name: parity}, against.name))
    return 0 if parity.passed else 1


def _draw_labeled(images: ImageChoice, limit: int, model: Backend) -> Views:
    from export.reference import draw_images
    from swav_tf.plumbing.errors import DataError

    view, share = model.input_view, model.data.max_bad_share
    drawn, _ = draw_images(images.open(model.data), (limit, 0), view, seed=0, max_bad_share=share)
    if (drawn.labels < 0).any():
        raise DataError(
            f"--images must have classes (--kind class_folders), except with --against. Received: {images.data}."
        )
    return drawn
