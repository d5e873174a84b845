"""`swav-tf features`: compute features of images, in a file or in parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.model_options import ModelChoice, optional_model_options
from cli.options import (
    ImageChoice,
    ReadingChoice,
    Report,
    image_options,
    output_option,
    reading_options,
    report_options,
)
from cli.part_options import Division, division_options
from cli.progress import ImageProgress, image_progress, share_progress

if TYPE_CHECKING:
    from evaluate.backends.backend import Backend
    from evaluate.feature_parts import Part
    from evaluate.features import Extraction
    from evaluate.images import ImageSet


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

    If DATA is a folder of parts, they are exported to OUTPUT as one file.

    \b
    Examples:
      swav-tf features digits --split test --model runs/demo --output test.npz
      swav-tf features ILSVRC2012/train --model runs/first --output train.npy --batch 256
      swav-tf features photos/ --kind images --model runs/first --output photos --part 17/400
      swav-tf features photos/ --kind images --model runs/first --output photos --devices gpu:4
      swav-tf features photos --check
      swav-tf features photos --output photos.parquet
      swav-tf features photos/ --model resnet50.onnx --output photos.npz --view 256,224
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    """
    if check:
        return _check(images, report)
    if output is None:
        raise click.MissingParameter(param_type="option", param_hint="'--output'")
    from evaluate.feature_parts import Part, has_parts

    if images.data is not None and has_parts(Path(images.data)):
        from evaluate.features import export_features

        _show(report, output, str(output), export_features(Path(images.data), output, fresh=fresh))
        return 0
    target, work = division.target(output), _Work(images, model, reading, fresh)
    if isinstance(target, list):
        _share_out(work, division, target, report)
        return 0
    backend, opened = work.open()
    total = len(opened.source)
    if isinstance(target, Part):
        total = len(target.indices(total, reading.batch))
    with image_progress(total, "features", quiet=report.quiet) as progress:
        result = work.compute(backend, opened, target, progress)
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

    def open(self, *, threads: int = 0) -> tuple[Backend, ImageSet]:
        backend = self.model.open(threads=threads)
        return backend, self.images.open(backend.data)

    def compute(
        self,
        backend: Backend,
        images: ImageSet,
        target: Path | Part,
        on_progress: Callable[[int], None] | None = None,
    ) -> Extraction:
        from evaluate.features import extract_features

        return extract_features(
            backend,
            images,
            target,
            batch_size=self.reading.batch,
            threads=self.reading.threads,
            max_bad_share=self.reading.bad_share_of(backend),
            fresh=self.fresh,
            on_progress=on_progress,
        )

    def job(self) -> tuple[int, Callable[[Part], Extraction]]:
        """Open what a process of --devices needs; see `evaluate.part_workers.Job`."""
        backend, images = self.open(threads=self.reading.threads)
        return len(images.source), partial(self.compute, backend, images)

    def with_cores(self, cores: int) -> _Work:
        return replace(self, reading=replace(self.reading, threads=cores))


def _share_out(work: _Work, division: Division, parts: list[Part], report: Report) -> None:
    """Let several processes compute all parts, and report on them."""
    from evaluate.part_workers import make_parts

    began = time.perf_counter()
    starts = division.starts(work.model, lambda cores: work.with_cores(cores).job, work.reading.threads)
    with ExitStack() as stack:
        bars: list[ImageProgress] = []  # one, once the number of images is known

        def show(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(image_progress(total, "features", quiet=report.quiet)))
            bars[0](done)

        made = make_parts(starts, parts, show)
    result = replace(
        made[0],
        images=sum(each.images for each in made),
        unreadable=sum(each.unreadable for each in made),
        images_before=sum(each.images_before for each in made),
        seconds=time.perf_counter() - began,
    )
    folder = parts[0].folder
    _show(report, folder / "part-*", f"{folder}, {len(parts)} parts", result)


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
        lines.append(f"{result.unreadable:,} unreadable images skipped, listed in {listed}.unreadable.csv")
    document = {
        "output": str(output if isinstance(output, Path) else output.folder),
        "part": None if isinstance(output, Path) else str(output),
        "images": result.images,
        "feature_dim": result.feature_dim,
        "unreadable": result.unreadable,
        "images_before": result.images_before,
        "images_per_second": speed,
        **facts,
    }
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
