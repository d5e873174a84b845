"""Features of a whole image set, shard by shard, so that an interrupted run goes on where it was.

While it runs, OUTPUT.shards/ beside the output holds `settings.json` and one finished `shard-NNNNNN.npz` for
each range of images; at the end they are put together and removed. At that moment the disk holds the
features twice.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.backends.backend import Backend
from evaluate.feature_cache import (
    keep_settings,
    locked,
    read_shard,
    refuse_differences,
    remove_shards,
    unreadable_of,
    write_feature_file,
    write_shard,
)
from evaluate.feature_file import beside, check_format, read_feature_file
from evaluate.images import ImageSet, UnreadableImages, ViewedImage, batches, stack_views, view_images
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable

SHARD_IMAGES = 4096  # 32 MiB of 2048 features
BATCH_IMAGES = 128


@dataclass(frozen=True)
class Extraction:
    """What `extract_features` did.

    Attributes:
        output: the feature file.
        images: rows in it.
        feature_dim: F.
        unreadable: name and reason of the images that are left out.
        images_before: images whose features were there already when it began.
        seconds: time for the others.
    """

    output: Path
    images: int
    feature_dim: int
    unreadable: dict[str, str]
    images_before: int
    seconds: float


def extract_features(
    runner: Backend,
    images: ImageSet,
    output: Path,
    *,
    batch_size: int = BATCH_IMAGES,
    shard_size: int = SHARD_IMAGES,
    threads: int = 0,
    max_bad_share: float = 0.01,
    fresh: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Extraction:
    """Writes the features of all readable images to a feature file, in the order of the source.

    The same call after an interruption goes on behind the last finished shard, and gives the same file.

    Args:
        runner: the model.
        images: what to run it on.
        output: ends in .npz, .npy or .parquet.
        batch_size: images that the model sees at once.
        shard_size: images whose features are kept for good together: what an interruption loses at most.
        threads: that decode; 0 for one a core.
        max_bad_share: share of unreadable images (0 to 1) past which it is an error.
        fresh: forget what an earlier call left at this output.
        on_progress: called with the number of images that are done.

    Raises:
        UsageError: the output is there already or was begun, of another model, images or settings.
        DataError: too many images are unreadable, or the disk refuses.
    """
    check_format(output)
    began = time.perf_counter()
    facts = {
        "model": runner.facts.as_dict(),
        "view": runner.input_view.model_dump(),
        "source": images.facts(),
        "class_names": [printable(name) for name in images.source.class_names],
    }
    folder = beside(output, ".shards")
    if output.exists() and not fresh:
        found = _already_there(output, facts)
        if folder.exists():  # what was interrupted was only the removal of the shards
            with locked(folder, output):
                shutil.rmtree(folder)
        return found
    total = len(images.source)
    with locked(folder, output):
        if fresh:
            remove_shards(folder)
        keep_settings(folder, {**facts, "batch_size": batch_size, "shard_size": shard_size}, output)
        shards = {
            folder / f"shard-{number:06d}.npz": range(start, min(start + shard_size, total))
            for number, start in enumerate(range(0, total, shard_size))
        }
        missing = {path: indices for path, indices in shards.items() if not path.exists()}
        unreadable = UnreadableImages(total, max_bad_share, beside(output, ".unreadable.csv"))
        images_before = total - sum(map(len, missing.values()))
        for path in shards.keys() - missing.keys():
            unreadable.reasons |= unreadable_of(path)
        try:
            _write_missing(
                runner, images, missing, unreadable, batch_size=batch_size, threads=threads, tell=on_progress
            )
        finally:
            unreadable.write_list()
        rows = total - len(unreadable.reasons)
        if not rows:
            raise DataError(f"At least one image must be readable. Received: {total} that are not.")
        write_feature_file(output, lambda: map(read_shard, shards), {**facts, "unreadable": total - rows})
        shutil.rmtree(folder)
    seconds = time.perf_counter() - began
    return Extraction(output, rows, runner.feature_dim, unreadable.reasons, images_before, seconds)


def _write_missing(
    runner: Backend,
    images: ImageSet,
    missing: Mapping[Path, range],
    unreadable: UnreadableImages,
    *,
    batch_size: int,
    threads: int,
    tell: Callable[[int], None] | None,
) -> None:
    """Computes the shards that are not there yet, each of a range of the images."""
    done = len(images.source) - sum(map(len, missing.values()))
    # One stream over all shards: decoding goes on while a shard is written.
    wanted = list(itertools.chain.from_iterable(missing.values()))
    views = view_images(images.source, wanted, runner.input_view, threads=threads, ahead=2 * batch_size)
    with contextlib.closing(views):
        for path, indices in missing.items():
            seen: list[ViewedImage] = []
            outputs: list[np.ndarray] = []
            known = len(unreadable.reasons)
            for batch in batches(itertools.islice(views, len(indices)), batch_size, unreadable):
                outputs.append(runner.run(stack_views(batch))["features"])
                seen += [replace(image, view=None) for image in batch]
                if tell is not None:
                    tell(done + 1 + batch[-1].index - indices.start)
            bad = dict([*unreadable.reasons.items()][known:])
            write_shard(path, seen, outputs, runner.feature_dim, bad)
            done += len(indices)


def _already_there(output: Path, facts: dict[str, Any]) -> Extraction:
    """The output of an earlier call, if it is the one that is asked for."""
    file = read_feature_file(output)
    before = {key: file.facts.get(key) for key in facts}
    refuse_differences(before, facts, f"{output} is there already, and not of what is asked for now")
    total, (rows, feature_dim) = facts["source"]["images"], file.rows.features.shape
    listed = UnreadableImages(total, 1.0, beside(output, ".unreadable.csv")).read_list()
    return Extraction(output, rows, feature_dim, listed, images_before=total, seconds=0.0)
