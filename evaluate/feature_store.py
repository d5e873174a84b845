"""The features of an unfinished run, so that it can resume after an interruption.

The work folder OUTPUT.work/ contains arrays that grow row by row and progress.json with the row counter, which is
written once the rows are on disk. Rows beyond the counter are cut off when a run resumes. Each part has its own.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from evaluate.feature_file import companion
from evaluate.feature_parts import changed_facts
from swav_tf.data.views import ViewedImage
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write, locked_folder, remove_leftovers

FEATURES: Final = "features.f32"  # (rows, F)
ROWS: Final = "rows.i64"  # (rows, 2): number in the source and label
PROGRESS: Final = "progress.json"


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
        features = np.memmap(self.folder / FEATURES, "<f4", "r", shape=shape)
        index, labels = np.fromfile(self.folder / ROWS, "<i8").reshape(self.rows, 2).T
        return features, index, labels


@contextmanager
def open_store(
    output: Path, settings: dict[str, Any], feature_dim: int, *, fresh: bool = False
) -> Iterator[FeatureStore]:
    """Open the work folder of a feature file for this process alone. It is removed if the block succeeds.

    `settings` are everything that the features depend on; `fresh` discards earlier progress.

    Raises:
        UsageError: another process writes it, or it was started with other settings.
        DataError: it is damaged, or the disk refuses.
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
