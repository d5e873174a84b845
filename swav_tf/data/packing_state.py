"""What an unfinished packing leaves on disk, so that it goes on after any end: the plan and the journal.

shards.plan.json       what is packed into how many shards; written first, removed when the index is there
shards.journal.jsonl   one line for each shard that is whole, appended after its last byte is on disk
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from swav_tf.data import storage
from swav_tf.data.shard_index import INDEX, NAMES, RECORDS, Shard
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import sync_to_disk, take_lock
from swav_tf.plumbing.names import printable

TIMES: Final = "times_sha256"  # of the images, in a source's facts; an earlier version has none
PLAN: Final = "shards.plan.json"
JOURNAL: Final = "shards.journal.jsonl"
_LOCK: Final = ".lock"
_SHARD_NAME: Final = re.compile(r"images-\d{5,}-of-\d{5,}\.tfrecord")


def unfinished(folder: str) -> bool:
    """Whether a packing into this folder has begun and not ended."""
    return storage.is_folder(folder) and storage.exists(storage.join(folder, PLAN))


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan, or None if there is none that can be read."""
    try:
        plan = json.loads((folder / PLAN).read_bytes())
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) else None


def read_journal(folder: Path) -> dict[str, Shard]:
    """The shards that were whole, by name; the last line of a killed process may be cut and is left out."""
    shards = {}
    try:
        lines = (folder / JOURNAL).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            shard = Shard(**json.loads(line))
        except (ValueError, TypeError):
            continue
        shards[shard.name] = shard
    return shards


def write_whole(path: Path, *parts: bytes) -> None:
    """Writes a file so that it is there whole or not at all, also after a power cut.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_to_disk(path.parent)


def begin_or_go_on(output: Path, plan: dict[str, Any]) -> None:
    """Writes the plan, or holds it against the one that is there.

    Raises:
        UsageError: it is of another packing.
    """
    before = (read_plan(output) or {}) if unfinished(str(output)) else None
    source = (before or {}).get("source") or {}
    # An earlier version's plan has no times.
    times = {TIMES: plan["source"].get(TIMES)} if source and TIMES not in source else {}
    if before is None or (times and {**before, "source": source | times} == plan):
        with disk_errors_told(output):
            write_whole(output / PLAN, json.dumps(plan).encode())
        return
    if before == plan:
        return
    same_images = _but_times(source) == _but_times(plan["source"])
    same_times = (source | times).get(TIMES) == plan["source"].get(TIMES)
    differences = [
        what
        for what, same in (
            ("the kind", before.get("kind") == plan["kind"]),
            ("the number of shards", before.get("shards") == plan["shards"]),
            ("the images", same_images),
            ("the times of the images' last change", same_times or not same_images),
        )
        if not same
    ]
    raise UsageError(
        f"A packing goes on only with the images and settings that it was begun with; {' and '.join(differences)} "
        f"changed since. {output} was begun with {(before.get('source') or {}).get('images', '?')} images in "
        f"{before.get('shards', '?')} shards; now there are {plan['source']['images']} and {plan['shards']}. "
        "Give the old ones, or begin anew with --fresh."
    )


def _but_times(source: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in source.items() if key != TIMES}


def remove_packing(output: Path) -> None:
    """Removes what a packing wrote, and nothing else.

    After any end the same call goes on: what tells that the folder is a packing's goes last.
    """
    marks = []
    for path in list(output.iterdir()):
        own = path.name.removeprefix(".").removesuffix(".part")
        if path.name in (INDEX, PLAN):
            marks.append(path)
        elif own in (INDEX, RECORDS, NAMES, PLAN, JOURNAL) or _SHARD_NAME.fullmatch(own):
            path.unlink()
    sync_to_disk(output)
    for path in marks:
        path.unlink()


@contextmanager
def disk_errors_told(output: Path) -> Iterator[None]:
    """A full or broken disk in words."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise DataError(
            f"{output} could not be written: {error.strerror or error}. {'Make room' if full else 'Mend that'} and "
            "give the same command again: shards that are whole are kept, and it goes on."
        ) from error


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """The folder, made if it is not there, for this process alone.

    Raises:
        UsageError: it holds something else, another process writes it, it cannot be written, or has no locks.
    """
    if output.is_dir() and not unfinished(str(output)) and not (output / INDEX).exists():
        others = [name for name in os.listdir(output) if not name.startswith(".")]
        if others:
            raise UsageError(
                f"The folder of the shards must be new or empty. Received: {output}, with {len(others)} entries, "
                f"{printable(min(others))} the first. Give another one."
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / _LOCK).open("a")
    except OSError as error:
        raise UsageError(
            f"The shards' folder must be one that can be written. Received: {output} ({error})."
        ) from error
    with lock:
        if not take_lock(lock, output):
            raise UsageError(
                f"Only one process may write shards into {output}, and one does now. Wait for it, or give "
                "another folder."
            )
        yield
