"""Features of a whole image set, shard by shard, so that an interrupted run goes on where it was.

While it runs, OUTPUT.shards/ beside the output holds `settings.json` and one finished `shard-NNNNNN.npz` for
each range of images; at the end they are put together and removed. At that moment the disk holds the
features twice.
"""

from __future__ import annotations

import fcntl
import io
import itertools
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.feature_file import Rows, beside, check_format, read_feature_file, write_feature_file
from evaluate.images import ImageSet, UnreadableImages, ViewedImage, batches, stack_views, view_images
from evaluate.runners.runner import Runner
from swav_tf.data.names import printable
from swav_tf.errors import DataError, UsageError

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
    runner: Runner,
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
        "view": runner.view.model_dump(),
        "source": images.facts(),
        "class_names": [printable(name) for name in images.source.class_names],
    }
    folder = beside(output, ".shards")
    if output.exists() and not fresh:
        found = _already_there(output, facts)
        if folder.exists():  # what was interrupted was only the removal of the shards
            with _locked(folder, output):
                shutil.rmtree(folder)
        return found
    total = len(images.source)
    with _locked(folder, output):
        if fresh:
            _remove_shards(folder)
        _keep_settings(folder, {**facts, "batch_size": batch_size, "shard_size": shard_size}, output)
        shards = {
            folder / f"shard-{number:06d}.npz": range(start, min(start + shard_size, total))
            for number, start in enumerate(range(0, total, shard_size))
        }
        missing = {path: indices for path, indices in shards.items() if not path.exists()}
        unreadable = UnreadableImages(total, max_bad_share, beside(output, ".unreadable.csv"))
        done = images_before = total - sum(map(len, missing.values()))
        for path in shards.keys() - missing.keys():
            unreadable.reasons |= _unreadable_of(path)
        # One stream over all shards: decoding goes on while a shard is written.
        wanted = list(itertools.chain.from_iterable(missing.values()))
        views = view_images(images.source, wanted, runner.view, threads=threads, ahead=2 * batch_size)
        try:
            for path, indices in missing.items():
                seen: list[ViewedImage] = []
                outputs: list[np.ndarray] = []
                known = len(unreadable.reasons)
                for batch in batches(itertools.islice(views, len(indices)), batch_size, unreadable):
                    outputs.append(runner.run(stack_views(batch))["features"])
                    seen += [replace(image, view=None) for image in batch]
                    if on_progress is not None:
                        on_progress(done + 1 + batch[-1].index - indices.start)
                bad = dict([*unreadable.reasons.items()][known:])
                _write_shard(path, seen, outputs, runner.feature_dim, bad)
                done += len(indices)
        finally:
            views.close()
            unreadable.write_list()
        rows = total - len(unreadable.reasons)
        if not rows:
            raise DataError(f"At least one image must be readable. Received: {total} that are not.")
        write_feature_file(output, lambda: map(_read_shard, shards), {**facts, "unreadable": total - rows})
        shutil.rmtree(folder)
    seconds = time.perf_counter() - began
    return Extraction(output, rows, runner.feature_dim, unreadable.reasons, images_before, seconds)


# === What is kept between two calls ===


def _already_there(output: Path, facts: dict[str, Any]) -> Extraction:
    """The output of an earlier call, if it is the one that is asked for."""
    file = read_feature_file(output)
    before = {key: file.facts.get(key) for key in facts}
    _refuse_differences(before, facts, f"{output} is there already, and not of what is asked for now")
    total, (rows, feature_dim) = facts["source"]["images"], file.rows.features.shape
    listed = UnreadableImages(total, 1.0, beside(output, ".unreadable.csv")).read_list()
    return Extraction(output, rows, feature_dim, listed, images_before=total, seconds=0.0)


def _keep_settings(folder: Path, settings: dict[str, Any], output: Path) -> None:
    """Writes settings.json, or holds it against the one that is there."""
    path = folder / "settings.json"
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} is damaged: {error}. Give --fresh to begin {output} anew, or another -o."
            ) from error
        _refuse_differences(before, settings, f"{output} was begun with other settings")
    else:
        _write_whole(path, json.dumps(settings, indent=1).encode())


def _refuse_differences(before: dict[str, Any], now: dict[str, Any], what: str) -> None:
    differences = [
        f"  {key}: was {old!r}, now {new!r}"
        for key, old, new in _pairs(before, now)
        if old != new and key != "model.path"  # a run folder may move
    ]
    if differences:
        raise UsageError(
            f"{what}:\n"
            + "\n".join(differences)
            + "\nGive the old values, another -o, or --fresh to begin anew."
        )


def _pairs(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _pairs(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    else:
        yield key, before, now


def _write_shard(
    path: Path, seen: Sequence[ViewedImage], outputs: Sequence[np.ndarray], width: int, bad: dict[str, str]
) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        features=np.concatenate(outputs) if outputs else np.empty((0, width), np.float32),
        labels=np.array([image.label for image in seen], np.int64),
        index=np.array([image.index for image in seen], np.int64),
        names=np.array([image.name for image in seen], str),
        bad_names=np.array(list(bad.keys()), str),
        bad_reasons=np.array(list(bad.values()), str),
    )
    _write_whole(path, buffer.getbuffer())


def _read_shard(path: Path) -> Rows:
    with _open_shard(path) as file:
        return Rows(file["features"], file["labels"], file["index"], file["names"].tolist())


def _unreadable_of(path: Path) -> dict[str, str]:
    with _open_shard(path) as file:
        return dict(zip(file["bad_names"].tolist(), file["bad_reasons"].tolist(), strict=True))


@contextmanager
def _open_shard(path: Path) -> Iterator[Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is damaged: {error}. Remove it and give the same command again: its images are done anew."
        ) from error


def _write_whole(path: Path, data: bytes | memoryview) -> None:
    """A file that is whole under its name, also after a power cut."""
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(
            f"{path} could not be written: {error}. Make room and give the same command again: it goes on."
        ) from error


def _remove_shards(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != ".lock":
            path.unlink()


@contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    """The shards are this process's alone; the system lets go of the lock when it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error}. Give another -o.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"Only one process may write {output}, and another does now. Wait for it, or give another -o."
            ) from None
        yield
