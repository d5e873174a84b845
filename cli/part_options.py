"""The options of `swav-tf features` that divide the images into parts and these among processes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.model_options import ModelChoice
from cli.options import count_option, option_group, part_option

if TYPE_CHECKING:
    from evaluate.feature_parts import Part
    from evaluate.part_workers import Devices, Job, Worker


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
            from evaluate.ray_workers import ray_starts

            return ray_starts(job, self.devices, cores)
        from evaluate.part_workers import process_starts

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
    part_option("Compute", "the output is a folder", otherwise="1/1"),
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
        help="Where the processes of --devices run: actors on a Ray cluster.",
    ),
)
