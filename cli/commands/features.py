"""`swav-tf features`: compute features of images, in a file or in parts."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.model_options import ModelChoice, optional_model_options
from cli.options import (
    ImageChoice,
    ReadingChoice,
    Report,
    count_option,
    image_options,
    option_group,
    output_option,
    part_option,
    reading_options,
    refuse_given,
    report_options,
)
from cli.progress import image_progress, share_progress
from swav_tf.plumbing.names import counted

if TYPE_CHECKING:
    from evaluate.backends.backend import Backend
    from evaluate.feature_parts import Part
    from evaluate.features import Extraction
    from evaluate.part_workers import Devices, Job, Worker


# Parameters that apply where features are computed.
_COMPUTING = (
    "kind", "split", "labels", "part", "devices", "parts", "on", "batch", "threads", "max_bad_share", "provider",
    "view", "mean", "std", "output_name",
)  # fmt: skip


@dataclass(frozen=True)
class Division:
    """The part that this process computes, or the processes that compute all."""

    part: str | None
    parts: int | None
    devices: Devices | None
    on: str | None

    def target(self, output: Path) -> Path | Part | list[Part]:
        """Return the file, the part or the list of parts to write; report errors before TensorFlow loads."""
        from evaluate.feature_file import FORMATS, check_format
        from evaluate.feature_parts import Part, has_parts, read_facts
        from swav_tf.plumbing.parts import part_numbers

        if self.devices is None and (self.parts is not None or self.on is not None):
            raise click.UsageError("--parts and --on need --devices, such as cpu:2 or gpu:4.")
        if self.devices is None and self.part is None and output.suffix:
            check_format(output)
            return output
        if output.suffix in FORMATS:
            raise click.UsageError(f"--part and --devices need a folder as --output. Received: {output}.")
        one = part_numbers(self.part, os.environ)
        if self.devices is None:
            return Part(output, *(one or (1, 1)))
        if one is not None:
            raise click.UsageError(
                f"--devices computes all parts. Received: {one[0]}/{one[1]}, by --part or a SLURM array. Omit "
                "--devices, or start it outside of an array."
            )
        kept = read_facts(output)["parts"] if has_parts(output) else self.devices.count
        count = self.parts or kept
        return [Part(output, number, count) for number in range(1, count + 1)]

    def starts(
        self, model: ModelChoice, job: Callable[[int], Job], cores: int
    ) -> Sequence[Callable[[], Worker]]:
        """Return what starts each process; `job` and `cores` as in `process_starts`."""
        from evaluate.part_workers import process_starts, ray_starts

        assert self.devices is not None
        on_gpu = model.provider in ("cuda", "tensorrt")
        if self.devices.kind == "gpu" and str(model.model).endswith(".onnx") and not on_gpu:
            raise click.UsageError(
                f"--devices {self.devices} needs --provider cuda or tensorrt for ONNX files."
            )
        if self.devices.kind == "cpu" and on_gpu:
            raise click.UsageError(
                f"--devices {self.devices} computes on CPUs. Received: --provider {model.provider}. Use gpu:N."
            )
        if self.on == "ray":
            return ray_starts(job, self.devices, cores)
        return process_starts(job, self.devices, cores)


def _devices(context: click.Context, option: click.Parameter, value: str | None) -> Devices | None:
    if value is None:
        return None
    match = re.fullmatch(r"(cpu|gpu):([1-9]\d*)", value)
    if match is None:
        raise click.BadParameter(f"must be cpu:N or gpu:N, N >= 1, such as gpu:4. Received: {value}")
    from evaluate.part_workers import Devices

    return Devices(match[1], int(match[2]))


division_options = option_group(
    "division",
    Division,
    part_option("Compute", "The output is a folder", otherwise="1/1"),
    click.option(
        "--devices",
        callback=_devices,
        metavar="KIND:N",
        help="Compute all parts in N processes: gpu:N, each with a GPU; cpu:N, each with a share of the cores.",
    ),
    count_option(
        "--parts", show_default="those in OUTPUT, else one per device", help="Number of parts with --devices."
    ),
    click.option(
        "--on",
        type=click.Choice(["ray"]),
        show_default="this machine",
        help="Run the processes of --devices as actors on a Ray cluster.",
    ),
)


@click.command()
@image_options()
@optional_model_options
@output_option("Feature file to write, .npz, .npy or .parquet, or a folder for parts.", metavar="PATH")
@division_options
@click.option(
    "--check",
    is_flag=True,
    help="Check all parts in the folder DATA, and list the commands that compute missing ones.",
)
@reading_options
@click.option("--fresh", is_flag=True, help="Start over, even if the output exists or is unfinished.")
@report_options
def command(
    images: ImageChoice,
    model: ModelChoice,
    output: Path | None,
    division: Division,
    check: bool,
    reading: ReadingChoice,
    fresh: bool,
    report: Report,
) -> int:
    """Compute the features of the images in DATA: a folder, an archive, a list, shards, a TFDS name, or `digits`.

    Without DATA, the images that the model was trained on are used. An interrupted command resumes when it is run
    again. Unreadable images are skipped and listed in OUTPUT.unreadable.csv.

    \b
    .npz      one file, read into memory: up to about 100,000 images
    .npy      memory-mapped, for millions; names and labels in OUTPUT.csv, facts in OUTPUT.json
    .parquet  one row per image, for data frames and databases
    a folder  parts, one per process or machine; other commands accept it like a file

    If DATA is a folder of parts and there is no --model, the parts are combined into the single file OUTPUT.

    \b
    Examples:
      swav-tf features digits --split test --model runs/demo --output test.npz
      swav-tf features ILSVRC2012/train --model runs/first --output train.npy --batch 256
      swav-tf features photos/ --kind images --model runs/first --output features/ --part 17/400
      swav-tf features photos/ --kind images --model runs/first --output features/ --devices gpu:4
      swav-tf features features/ --check
      swav-tf features features/ --output photos.parquet
      swav-tf features photos/ --model resnet50.onnx --output photos.npz --view 256,224
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    """
    if check:
        refuse_given({"output", "model", "fresh", *_COMPUTING}, "cannot be used with --check.")
        return _check(images, report)
    if output is None:
        raise click.MissingParameter(param_type="option", param_hint="'--output'")
    from evaluate.feature_parts import Part, has_parts

    if model.model is None and images.data is not None and has_parts(Path(images.data)):
        from evaluate.features import export_features

        refuse_given(_COMPUTING, "cannot be used where DATA is a folder of parts, which are combined.")
        _show(report, output, str(output), export_features(Path(images.data), output, fresh=fresh))
        return 0
    target, work = division.target(output), _Work(images, model, reading, fresh)
    if isinstance(target, list):
        _share_out(work, division, target, report)
        return 0
    backend, total, extract = work.open()
    if isinstance(target, Part):
        total = len(target.indices(total, reading.batch))
    with image_progress(total, "features", quiet=report.quiet) as progress:
        result = extract(target, on_progress=progress)
    what = f"{target.folder}, part {target}" if isinstance(target, Part) else str(target)
    _show(report, target, what, result, model=backend.facts.as_dict())
    return 0


@dataclass(frozen=True)
class _Work:
    """The features to compute, in this process or by those of --devices."""

    images: ImageChoice
    model: ModelChoice
    reading: ReadingChoice
    fresh: bool

    def open(self, cores: int = 0) -> tuple[Backend, int, Callable[..., Extraction]]:
        """Return the model, the number of images, and what writes the features of these images to a target."""
        from evaluate.features import extract_features

        backend = self.model.open(threads=cores)
        images = self.images.open(backend.data)
        extract = partial(
            extract_features,
            backend,
            images,
            batch_size=self.reading.batch,
            threads=cores or self.reading.threads,
            max_bad_share=self.reading.bad_share_of(backend),
            fresh=self.fresh,
        )
        return backend, len(images.source), extract

    def job(self, cores: int) -> tuple[int, Callable[[Part], Extraction]]:
        """Open what a process of --devices needs; see `evaluate.part_workers.Job`."""
        return self.open(cores)[1:]


def _share_out(work: _Work, division: Division, parts: list[Part], report: Report) -> None:
    """Let several processes compute all parts, and report on them."""
    from evaluate.features import Extraction
    from evaluate.part_workers import make_parts

    began = time.perf_counter()
    starts = division.starts(work.model, lambda cores: partial(work.job, cores), work.reading.threads)
    with ExitStack() as stack:
        bars: list[Callable[..., None]] = []  # one, once the number of images is known

        def show(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(image_progress(total, "features", quiet=report.quiet)))
            bars[0](done)

        made = make_parts(starts, parts, show)
    result = Extraction(
        images=sum(each.images for each in made),
        feature_dim=made[0].feature_dim,
        unreadable=sum(each.unreadable for each in made),
        images_before=sum(each.images_before for each in made),
        seconds=time.perf_counter() - began,
    )
    folder = parts[0].folder
    _show(report, folder / "part-*", f"{folder}, {counted(len(parts), 'part')}", result)


def _show(report: Report, output: Path | Part, what: str, result: Extraction, **facts: object) -> None:
    computed = result.images + result.unreadable - result.images_before
    speed = computed / result.seconds if computed else None
    lines = [f"{what}: {result.images:,} images x {result.feature_dim} features"]
    if result.images_before:
        lines.append(f"{result.images_before:,} of the images were already computed")
    if speed is not None:
        lines.append(f"{speed:,.0f} images/s over {result.seconds:.1f} s")
    if result.unreadable:
        listed = output if isinstance(output, Path) else output.base
        lines.append(
            f"{counted(result.unreadable, 'unreadable image')} skipped, listed in {listed}.unreadable.csv"
        )
    document: dict[str, object] = {
        "output": str(output if isinstance(output, Path) else output.folder),
        "part": None if isinstance(output, Path) else str(output),
        **asdict(result),
        "images_per_second": speed,
        **facts,
    }
    del document["seconds"]
    report.show(document, lines)


def _check(images: ImageChoice, report: Report) -> int:
    """Report the parts that are missing or damaged; return the exit code."""
    from evaluate.feature_parts import command_of, find_problems, read_facts

    if images.data is None:
        raise click.UsageError("--check needs DATA, the folder of parts.")
    folder = Path(images.data)
    facts = read_facts(folder)
    with share_progress("checked", quiet=report.quiet) as progress:
        found = find_problems(folder, read_all=True, on_progress=lambda done: progress(done / facts["parts"]))
    problems = [
        {
            "part": str(part),
            "problem": problem,
            "command": command_of(part, facts, fresh="damaged" in problem),
        }
        for part, problem in found
    ]
    lines = [line for each in problems for line in (each["problem"], f"  {each['command']}")]
    lines.append(f"{folder}: {facts['parts'] - len(found):,} of {facts['parts']:,} parts are complete")
    report.show({"folder": str(folder), "parts": facts["parts"], "problems": problems}, lines)
    return 1 if found else 0
