"""Features of all images of a source, in a file or in parts, by calls that resume after an interruption.

The work folder OUTPUT.work/ contains arrays that grow row by row and progress.json with the row counter, which is
written once the rows are on disk. Rows beyond the counter are cut off when a run resumes. Each part has its own.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from evaluate.backends.backend import Backend
from evaluate.feature_file import FeatureFile, check_format, companion, read_feature_file, write_feature_file
from evaluate.feature_parts import Part, changed_facts, part_facts, read_facts, start_folder, write_part
from evaluate.images import ImageSet
from swav_tf.data.bad_images import BadImages
from swav_tf.data.sources import contents_sha256
from swav_tf.data.views import ViewedImage, stack_views, view_batches
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write, locked_folder, remove_leftovers
from swav_tf.plumbing.log import log
from swav_tf.plumbing.names import printable

FEATURES: Final = "features.f32"  # (rows, F)
ROWS: Final = "rows.i64"  # (rows, 2): number in the source and label
PROGRESS: Final = "progress.json"


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
        before = store.images
        unreadable.restore(store.unreadable)
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
    """Return the path that the work folder belongs to, the numbers of the images, and what the features depend on.

    The facts of all parts are written if this is the first.
    """
    if isinstance(output, Path):
        check_format(output)
    place, data = output if isinstance(output, Path) else output.folder, images.settings
    if data.path is not None and data.kind != "tfds" and place.resolve() == Path(data.path).resolve():
        raise UsageError(f"--output must be another place than the images. Received: {place} for both.")
    facts: dict[str, Any] = {
        "model": model.facts.as_dict(),
        "view": model.input_view.model_dump(),
        "source": images.list_facts(),
        "class_names": [printable(name) for name in images.source.class_names],
    }
    if isinstance(output, Path):
        facts["source"]["contents_sha256"] = contents_sha256(images.source)
        return output, range(len(images.source)), facts
    indices = output.indices(len(images.source), batch_size)
    facts |= {"feature_dim": model.feature_dim, "batch_size": batch_size, "parts": output.count}
    start_folder(output.folder, facts)
    what = f"{output.folder} has parts of other settings"
    refuse_changes(read_facts(output.folder), facts, what, fresh=False)
    return output.base, indices, facts | {"contents_sha256": contents_sha256(images.source, indices)}


def _write(output: Path | Part, store: FeatureStore, images: ImageSet, facts: dict[str, Any]) -> None:
    if not store.rows and isinstance(output, Path):
        unreadable = facts["unreadable"]
        raise DataError(f"At least one image must be readable. Received: {unreadable} unreadable images.")
    features, index, labels = store.read()
    names = [printable(images.source.image_name(i)) for i in index.tolist()]
    if isinstance(output, Part):
        write_part(output, features, index, labels, names, facts)
    else:
        write_feature_file(FeatureFile(output, features, labels, index, names, facts))


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
    """Write the features in a folder of parts to a feature file, .npz, .npy or .parquet."""
    check_format(output)
    if output.exists() and not fresh:
        raise UsageError(f"{output} exists. Use another --output, or --fresh to replace it.")
    began = time.perf_counter()
    file = read_feature_file(folder)
    write_feature_file(replace(file, path=output))
    unreadable = file.facts["unreadable"]
    done = len(file) + unreadable
    return Extraction(len(file), file.features.shape[1], unreadable, done, time.perf_counter() - began)


# === The work folder ===


class FeatureStore:
    """A work folder, open for writing.

    Attributes:
        images: images that are done, readable or not.
        rows: rows that are kept.
        unreadable: name and reason of each unreadable image.
        saved_at: time of the last save, by `time.monotonic`.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], feature_dim: int, files: ExitStack) -> None:
        self.folder, self.settings, self.feature_dim = folder, settings, feature_dim
        progress = _read_progress(folder / PROGRESS)
        self.images, self.rows = int(progress.get("images", 0)), int(progress.get("rows", 0))
        self.unreadable: dict[str, str] = progress.get("unreadable", {})
        if progress:
            refuse_changes(progress["settings"], settings, f"{folder} was started with other settings")
        self._features = files.enter_context(_open_array(folder / FEATURES, self.rows * feature_dim * 4))
        self._rows = files.enter_context(_open_array(folder / ROWS, self.rows * 2 * 8))
        self.saved_at = time.monotonic()
        if not progress:
            self.save(0)

    def append(self, batch: Sequence[ViewedImage], features: np.ndarray) -> None:
        """Write the rows of a batch. `save` makes them permanent."""
        with _disk_errors(self.folder):
            self._features.write(features.astype("<f4").tobytes())
            self._rows.write(np.array([(image.index, image.label) for image in batch], "<i8").tobytes())
        self.rows += len(batch)

    def save(self, images: int) -> None:
        """Keep all rows written so far, which are those of the first `images` images."""
        with _disk_errors(self.folder):
            for file in (self._features, self._rows):
                file.flush()
                os.fsync(file.fileno())
        self.images = images
        progress = {
            "settings": self.settings,
            "images": images,
            "rows": self.rows,
            "unreadable": self.unreadable,
        }
        with atomic_write(self.folder / PROGRESS) as partial:
            partial.write_text(json.dumps(progress, indent=1), encoding="utf-8")
        self.saved_at = time.monotonic()

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the kept features, memory-mapped, and the image numbers and labels of their rows."""
        shape = (self.rows, self.feature_dim)
        features = (
            np.memmap(self.folder / FEATURES, "<f4", "r", shape=shape)
            if self.rows
            else np.empty(shape, "<f4")
        )
        index, labels = np.fromfile(self.folder / ROWS, "<i8").reshape(self.rows, 2).T
        return features, index, labels


@contextmanager
def open_store(
    output: Path, settings: dict[str, Any], feature_dim: int, *, fresh: bool = False
) -> Iterator[FeatureStore]:
    """Open the work folder of a feature file for this process alone. It is removed if the block succeeds.

    `settings` are everything that the features depend on; `fresh` discards earlier progress.
    """
    with _locked(output) as folder:
        if fresh:
            for path in folder.iterdir():
                if path.name != ".lock":
                    path.unlink()
        with ExitStack() as files:
            yield FeatureStore(folder, settings, feature_dim, files)
        shutil.rmtree(folder)


def discard_store(output: Path) -> None:
    """Remove the work folder of a complete feature file, left by an interruption at the very end."""
    if companion(output, ".work").exists():
        with _locked(output) as folder:
            shutil.rmtree(folder)


def images_done(output: Path) -> int:
    """Return how many images another process, which may be writing right now, has done; 0 if unknown."""
    with suppress(DataError):
        return int(_read_progress(companion(output, ".work") / PROGRESS).get("images", 0))
    return 0


def _in_words(key: str, old: Any, new: Any) -> str:
    if not key.endswith("contents_sha256"):
        return f"  {key}: was {old!r}, now {new!r}"
    if old is None:  # of an earlier version
        return (
            "  image files: sizes and times were not recorded, so whether pictures were replaced is unknown"
        )
    return "  image files: other sizes or modification times (pictures were replaced, or copied)"


def refuse_changes(before: dict[str, Any], now: dict[str, Any], what: str, *, fresh: bool = True) -> None:
    """Raise UsageError if settings differ; the message begins with `what` and lists the differences.

    `fresh`: whether the message proposes to start over.
    """
    if changes := changed_facts(before, now):
        lines = "\n".join(_in_words(key, *values) for key, values in changes.items())
        remedy = ", another --output, or --fresh to start over." if fresh else " or another --output."
        raise UsageError(f"{what}:\n{lines}\nUse the old values{remedy}")


@contextmanager
def _locked(output: Path) -> Iterator[Path]:
    folder = companion(output, ".work")
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        for ending in ("", ".csv", ".json", ".npy", ".parquet", ".unreadable.csv"):
            remove_leftovers(companion(output, ending))
        yield folder


def _read_progress(path: Path) -> dict[str, Any]:
    """Return the content of progress.json, empty if there is none."""
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
        return {key: progress[key] for key in ("settings", "images", "rows", "unreadable")}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged: {error}. Use --fresh to start over, or another --output."
        ) from error


@contextmanager
def _open_array(path: Path, size: int) -> Iterator[IO[bytes]]:
    """Open an array file for appending after its first `size` bytes, which the row counter promises."""
    with _disk_errors(path):
        file = path.open("ab")
    with file:
        if file.tell() < size:
            raise DataError(
                f"{path} must contain at least {size:,} bytes. Received: {file.tell():,}; the file is damaged. Use "
                "--fresh to start over, or another --output."
            )
        file.truncate(size)
        yield file


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} could not be written: {error.strerror or error}. Free some space and run the same command again "
            "to resume, or use another --output."
        ) from error
