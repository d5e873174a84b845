"""Disks that cannot be written: outputs are refused in words, inputs are read all the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.folders.ground import Ground, wrong
from faults.jobs import benchmark, classifier, export, features, pretrain, shard
from faults.small_disk import small_disk
from faults.writers import make_inputs, small_writers

_CANNOT_WRITE = ("ead-only file system", "must be in a folder that can be written")


def read_only_outputs(ground: Ground, folder: Path) -> tuple[str, str]:
    """Every command that writes, in a folder that cannot be written."""
    made = ground.made
    inputs = make_inputs(ground.commands, made, folder / "inputs")
    jobs = (
        pretrain(), classifier("finetune", made.run), features(made.run, ".npz"), shard(made.images),
        export(made.run, "fp32"), benchmark(made.exported), *small_writers(inputs),
    )  # fmt: skip
    for number, job in enumerate(jobs):
        source = folder / f"source-{number}"
        source.mkdir()
        job.arguments(source)  # may copy what it reads
        try:
            with _read_only_copy(source, folder / str(number)) as inside:
                ended = job.start(ground.commands, inside).wait()
        except PermissionError as error:
            return f"skipped: a tmpfs cannot be mounted ({error})", ""
        told = any(words in ended.stderr for words in _CANNOT_WRITE)
        if ended.disgrace or ended.code not in (1, 2) or not told:
            return "", f"{job.name}: {ended.disgrace or ended}"
    return f"{len(jobs)} times refused in words", ""


def read_only_inputs(ground: Ground, folder: Path) -> tuple[str, str]:
    """Images and a run on a disk that cannot be written, outputs elsewhere."""
    (folder / "source").mkdir()
    shutil.copytree(ground.made.run, folder / "source" / "run")
    shutil.copytree(ground.made.images, folder / "source" / "images")
    try:
        with _read_only_copy(folder / "source", folder / "disk") as inside:
            data = ("-o", "data.kind=class_folders", "-o", f"data.validation_path={inside / 'images'}")
            for arguments in (
                ["features", inside / "images", "--model", inside / "run", "--kind", "images",
                 "--output", folder / "x.npz"],
                ["export", inside / "run", "--output", folder / "exported"],
                ["data", "shard", inside / "images", folder / "shards"],
                ["probe", inside / "images", inside / "images", "--model", inside / "run", "-c", "probe_digits",
                 *data[:2], "-o", "data.validation_split=null", "-o", "train.epochs=1", "--run-dir", folder / "probe"],
            ):  # fmt: skip
                if trouble := wrong(ground.commands.run(arguments)):
                    return "", f"{arguments[0]}: {trouble}"
    except PermissionError as error:
        return f"skipped: a tmpfs cannot be mounted ({error})", ""
    return "read all the same", ""


@contextmanager
def _read_only_copy(source: Path, folder: Path) -> Iterator[Path]:
    """A copy of a folder on a disk that cannot be written."""
    with small_disk(folder) as disk:
        inside = folder / "inside"
        shutil.copytree(source, inside)
        disk.make_read_only()
        yield inside
