"""Features of all images of a source, in a file or in parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluate.backends.backend import Backend
from evaluate.feature_file import FeatureFile, check_format, companion, read_feature_file, write_feature_file
from evaluate.feature_parts import Part, part_facts, read_facts, start_folder, write_part
from evaluate.feature_store import FeatureStore, discard_store, open_store, refuse_changes
from evaluate.images import ImageSet
from swav_tf.data.bad_images import BadImages
from swav_tf.data.sources import contents_sha256
from swav_tf.data.views import stack_views, view_batches
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.names import printable


@dataclass(frozen=True)
class Extraction:
    """The result of `extract_features`."""

    images: int  # rows in the feature file or part
    feature_dim: int
    unreadable: int  # skipped images
    images_before: int  # images that an earlier call had done
    seconds: float  # time for the others


def extract_features(
    model: Backend,
    images: ImageSet,
    output: Path | Part,
    *,
    batch_size: int = 128,
    save_seconds: float = 1.0,
    threads: int = 0,
    max_bad_share: float = 0.01,
    fresh: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Extraction:
    """Write the features of all readable images, or of a part of the images, in the order of the source.

    The same call after an interruption resumes, and writes the same bytes as one without. Parts together are equal to
    one file, to the bit: an image has the same batch in both.

    The output ends in .npz, .npy or .parquet, or is a part; `images` are all images for a part, too. Results are saved
    every `save_seconds`, the most that an interruption loses. `threads` decode (0: one per core). `max_bad_share` of
    the images may be unreadable (0 to 1). `fresh` ignores the results of earlier calls. `on_progress` gets the number
    of images that are done.

    Raises:
        UsageError: the output exists or was started with another model, images or settings.
        DataError: too many images are unreadable, or the disk is full.
    """
    began = time.perf_counter()
    path, indices, facts = _target(model, images, output, batch_size)
    skipped = None if fresh else _skipped_before(output, facts)
    if skipped is not None:
        discard_store(path)
        return Extraction(len(indices) - skipped, model.feature_dim, skipped, len(indices), seconds=0.0)
    unreadable = BadImages(images=len(indices), max_share=max_bad_share, setting="--max-bad-share")
    with open_store(path, {**facts, "batch_size": batch_size}, model.feature_dim, fresh=fresh) as store:
        before, unreadable.reasons = store.images, store.unreadable
        rest, view, add = indices[before:], model.input_view, unreadable.bad
        batches = view_batches(images.source, rest, view, batch_size, threads=threads, unreadable=add)
        try:
            for batch in batches:
                store.append(batch, model.features(stack_views(batch)))
                # Rounded up: a batch's last images may be unreadable.
                of_rest = batch[-1].index - rest.start + 1
                done = min(before + -(-of_rest // batch_size) * batch_size, len(indices))
                if time.monotonic() - store.saved_at >= save_seconds:
                    store.save(done)
                if on_progress is not None:
                    on_progress(done)
            store.save(len(indices))
        finally:
            unreadable.write_list(companion(path, ".unreadable.csv"))
        facts["unreadable"] = unreadable.count
        _write(output, store, images, facts)
    seconds = time.perf_counter() - began
    return Extraction(store.rows, model.feature_dim, facts["unreadable"], before, seconds)


def _target(
    model: Backend, images: ImageSet, output: Path | Part, batch_size: int
) -> tuple[Path, range, dict[str, Any]]:
    """Return the path that the work folder belongs to, the numbers of the images, and the facts."""
    if isinstance(output, Part):
        indices = output.indices(len(images.source), batch_size)
        facts = _part_facts(model, images, output, batch_size)
        return output.base, indices, facts | {"contents_sha256": contents_sha256(images.source, indices)}
    check_format(output)
    return output, range(len(images.source)), _facts(model, images) | {"source": images.facts()}


def _write(output: Path | Part, store: FeatureStore, images: ImageSet, facts: dict[str, Any]) -> None:
    if not store.rows:
        unreadable = facts["unreadable"]
        raise DataError(f"At least one image must be readable. Received: {unreadable} unreadable images.")
    features, index, labels = store.read()
    names = [printable(images.source.image_name(i)) for i in index.tolist()]
    if isinstance(output, Part):
        write_part(output, features, index, labels, names, facts)
    else:
        write_feature_file(FeatureFile(output, features, labels, index, names, facts))


def _facts(model: Backend, images: ImageSet) -> dict[str, Any]:
    """Return what the features depend on, but for the images' files and the batch size."""
    return {
        "model": model.facts.as_dict(),
        "view": model.input_view.model_dump(),
        "source": images.list_facts(),
        "class_names": [printable(name) for name in images.source.class_names],
    }


def _part_facts(model: Backend, images: ImageSet, part: Part, batch_size: int) -> dict[str, Any]:
    """Return the facts of all parts, which are written if this is the first."""
    facts = _facts(model, images)
    facts |= {"feature_dim": model.feature_dim, "batch_size": batch_size, "parts": part.count}
    start_folder(part.folder, facts)
    what = f"{part.folder} has parts of other settings"
    refuse_changes(read_facts(part.folder), facts, what, fresh=False)
    return facts


def _skipped_before(output: Path | Part, facts: dict[str, Any]) -> int | None:
    """Return the number of unreadable images if an earlier call has finished, None if not or if a part is damaged."""
    if isinstance(output, Path):
        if not output.exists():
            return None
        before, what = read_feature_file(output).facts, f"{output} exists and was created"
    elif not output.table.exists():
        return None
    else:
        try:
            before, what = part_facts(output), f"{output.array} was made"
        except DataError as error:
            log.warning(f"{error}. It is recomputed.")
            return None
    refuse_changes(before, facts, f"{what} with other settings")
    return int(before["unreadable"])


def export_features(folder: Path, output: Path, *, fresh: bool = False) -> Extraction:
    """Write the features in a folder of parts to a feature file, .npz, .npy or .parquet.

    Raises:
        UsageError: the output exists, unless it may be replaced (`fresh`).
        DataError: parts are missing or damaged.
    """
    check_format(output)
    if output.exists() and not fresh:
        raise UsageError(f"{output} exists. Use another --output, or --fresh to replace it.")
    began = time.perf_counter()
    file = read_feature_file(folder)
    write_feature_file(replace(file, path=output))
    unreadable = file.facts["unreadable"]
    done = len(file) + unreadable
    return Extraction(len(file), file.features.shape[1], unreadable, done, time.perf_counter() - began)
