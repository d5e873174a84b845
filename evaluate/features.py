"""Features of all images of a source, in a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.backends.backend import Backend
from evaluate.feature_file import FeatureFile, check_format, companion, read_feature_file, write_feature_file
from evaluate.feature_store import discard_store, open_store, refuse_changes
from evaluate.images import ImageSet
from swav_tf.data.views import UnreadableImages, stack_views, view_batches
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable


@dataclass(frozen=True)
class Extraction:
    """The result of `extract_features`."""

    images: int  # rows in the feature file
    feature_dim: int
    unreadable: int  # images that are left out
    images_before: int  # images that an earlier call had done
    seconds: float  # time for the others


def extract_features(
    model: Backend,
    images: ImageSet,
    output: Path,
    *,
    batch_size: int = 128,
    save_seconds: float = 1.0,
    threads: int = 0,
    max_bad_share: float = 0.01,
    fresh: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Extraction:
    """Write the features of all readable images to a feature file, in the order of the source.

    The same call after an interruption resumes, and writes the same bytes as one without.

    Args:
        model: the model.
        images: the images.
        output: ends in .npz, .npy or .parquet.
        batch_size: images that the model gets at once.
        save_seconds: time between two saves, the most that an interruption loses.
        threads: threads that decode; 0 for one per core.
        max_bad_share: largest share of unreadable images (0 to 1).
        fresh: start over, whatever an earlier call left.
        on_progress: called with the number of images that are done.

    Raises:
        UsageError: the output exists or was begun with another model, images or settings.
        DataError: too many images are unreadable, or the disk is full.
    """
    check_format(output)
    began = time.perf_counter()
    facts = _facts(model, images)
    if output.exists() and not fresh:
        return _complete(output, facts)
    total = len(images.source)
    unreadable = UnreadableImages(total, max_bad_share, companion(output, ".unreadable.csv"))
    with open_store(output, {**facts, "batch_size": batch_size}, model.feature_dim, fresh=fresh) as store:
        before, unreadable.reasons = store.images, store.unreadable
        rest, view, add = range(before, total), model.input_view, unreadable.add
        try:
            for batch in view_batches(images.source, rest, view, batch_size, threads=threads, unreadable=add):
                store.append(batch, model.features(stack_views(batch)))
                done = batch[-1].index + 1
                if time.monotonic() - store.saved_at >= save_seconds:
                    store.save(done)
                if on_progress is not None:
                    on_progress(done)
            store.save(total)
        finally:
            unreadable.write_list()
        if not store.rows:
            raise DataError(f"At least one image must be readable. Received: {total} unreadable images.")
        facts["unreadable"] = len(unreadable.reasons)
        features, index, labels = store.read()
        names = [printable(images.source.image_name(i)) for i in index.tolist()]
        write_feature_file(FeatureFile(output, features, labels, index, names, facts))
    seconds = time.perf_counter() - began
    return Extraction(store.rows, model.feature_dim, facts["unreadable"], before, seconds)


def _facts(model: Backend, images: ImageSet) -> dict[str, Any]:
    """Return everything that the features depend on but the batch size."""
    return {
        "model": model.facts.as_dict(),
        "view": model.input_view.model_dump(),
        "source": images.facts(),
        "class_names": [printable(name) for name in images.source.class_names],
    }


def _complete(output: Path, facts: dict[str, Any]) -> Extraction:
    """Return the result of an earlier call, which must have had the same arguments."""
    file = read_feature_file(output)
    before = {key: file.facts.get(key) for key in facts}
    refuse_changes(before, facts, f"{output} exists and was made with other settings")
    discard_store(output)
    rows, width = file.features.shape
    return Extraction(rows, width, file.facts["unreadable"], facts["source"]["images"], seconds=0.0)
