"""Pack images into TFRecord shards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from swav_tf.data import storage
from swav_tf.data.folders import ClassFolders, ImageFolder
from swav_tf.data.names import pack_names
from swav_tf.data.packing_state import (
    JOURNAL,
    PLAN,
    TIMES,
    begin_or_go_on,
    disk_errors_told,
    locked,
    read_journal,
    remove_packing,
    unfinished,
    write_whole,
)
from swav_tf.data.shard_index import (
    FOOTER,
    HEADER,
    IMAGE_KEY,
    INDEX,
    LABEL_KEY,
    Shard,
    ShardIndex,
    encode_example,
    framed,
    index_files,
    read_index,
    record_table,
    shard_path,
)
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import sync_to_disk
from swav_tf.plumbing.names import name_bytes, printable
from swav_tf.plumbing.system import available_cores, version_of

MIB: Final = 1 << 20
DEFAULT_SHARD_MIB: Final = 256
_RECORD_BYTES: Final = (
    256  # at most so many of an example are neither image nor names; for the room that is needed
)
_BLOCK: Final = 4 * MIB
_SHOWN: Final = 5  # damaged shards that a message names


@dataclass(frozen=True)
class Packed:
    """What a packing has made.

    Attributes:
        index: what index.json says.
        kept: shards that an earlier call had written and that were whole.
        images_before: images in them.
    """

    index: ShardIndex
    kept: int
    images_before: int


def write_shards(
    source: ClassFolders | ImageFolder,
    output: Path | str,
    *,
    shards: int | None = None,
    shard_mib: int = DEFAULT_SHARD_MIB,
    threads: int = 0,
    fresh: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Packed:
    """Packs all images of a folder; goes on where an interrupted call ended.

    A shard is written under another name, brought to disk, renamed and noted with its SHA-256; the
    index comes last. After any end, `kill -9` and power cut included, the same call keeps what is whole.
    Where all is packed, it reads the shards once and holds them against the index.

    Args:
        source: the folder, opened.
        output: folder for the shards, on this machine: new, empty, or with an earlier packing of the same.
        shards: so many of them; None: as `shard_mib` says.
        shard_mib: size of a shard, about, MiB.
        threads: shards written at once; 0: one a core.
        fresh: begin anew; shards of an earlier packing in `output` are removed.
        on_progress: is told how many images are done.

    Raises:
        UsageError: the output holds something else, or other images, these as they were before they
            changed too, or is being written.
        DataError: an image cannot be read, the images have changed, or there is no room; shards that
            are whole stay. Or all was packed before, and shards are damaged.
    """
    if storage.is_remote(output):
        raise UsageError(f"Shards are written on this machine, then copied. Received: {output}.")
    output = Path(output).expanduser()
    with locked(output):
        if fresh:
            remove_packing(output)
        sizes, source_facts = _facts_of(source)
        count = shards or max(1, round(sum(sizes) / (shard_mib * MIB)))
        if count > len(source):
            raise UsageError(f"Each shard holds an image at least: {len(source):,} images, {count:,} shards.")
        if (output / INDEX).exists() and not unfinished(str(output)):
            index = _already_packed(output, source.kind, source_facts, shards)
            _require_whole(index, threads or available_cores(), on_progress)
            for name in (PLAN, JOURNAL):
                (output / name).unlink(missing_ok=True)
            return Packed(index, len(index.shards), len(index.records))
        plan = {"source": source_facts, "kind": source.kind, "shards": count}
        begin_or_go_on(output, plan)
        packing = _Packing(source, output, sizes, count)
        kept = packing.keep(read_journal(output), threads or available_cores())
        before = packing.done
        _require_room(output, sum(sizes), packing)
        packing.run(threads or available_cores(), on_progress)
        index = packing.index(source_facts)
        for name, data in index_files(index, tool=f"swav-tf {version_of('swav-tf')}").items():
            with disk_errors_told(output):
                write_whole(output / name, data)
        for name in (PLAN, JOURNAL):
            (output / name).unlink(missing_ok=True)
        sync_to_disk(output)
    return Packed(read_index(str(output)), kept, before)


class _Packing:
    """The shards of one call."""

    def __init__(
        self, source: ClassFolders | ImageFolder, output: Path, sizes: list[int], count: int
    ) -> None:
        self.source, self.output, self.sizes = source, output, sizes
        bounds = [len(source) * number // count for number in range(count + 1)]
        self.runs = {
            f"images-{number:05d}-of-{count:05d}.tfrecord": range(bounds[number], bounds[number + 1])
            for number in range(count)
        }
        self.whole: dict[str, Shard] = {}
        self.done = 0
        self._lock, self._stop = threading.Lock(), threading.Event()

    def keep(self, journal: dict[str, Shard], threads: int) -> int:
        """Takes over the shards of an earlier call whose bytes are those that were noted; returns how many."""
        noted = [shard for name, shard in journal.items() if name in self.runs]
        with ThreadPoolExecutor(threads) as pool:
            for shard, whole in zip(noted, pool.map(self._is_whole, noted), strict=True):
                if whole:
                    self.whole[shard.name] = shard
                    self.done += shard.examples
        # Anew: behind the cut line of a killed process the next one would be lost.
        with disk_errors_told(self.output):
            lines = [json.dumps(asdict(shard)) + "\n" for shard in self.whole.values()]
            write_whole(self.output / JOURNAL, "".join(lines).encode())
        return len(self.whole)

    def run(self, threads: int, on_progress: Callable[[int], None]) -> None:
        """Writes the shards that are not there."""
        on_progress(self.done)
        missing = [name for name in self.runs if name not in self.whole]
        with ThreadPoolExecutor(threads, thread_name_prefix="shard") as pool:
            futures: set[Future[None]] = {pool.submit(self._write, name) for name in missing}
            try:
                while futures:
                    ended, futures = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
                    for future in ended:
                        future.result()
                    on_progress(self.done)
            finally:
                self._stop.set()  # those that still write leave no half shard
                for future in futures:
                    future.cancel()

    def index(self, source_facts: dict[str, Any]) -> ShardIndex:
        """The index of all shards, their records found by a walk over their lengths."""
        tables = [record_table(str(self.output / name)) for name in self.runs]
        labels = np.array([self.source.label(index) for index in range(len(self.source))], np.int64)
        return ShardIndex(
            folder=str(self.output),
            kind=self.source.kind,
            class_names=self.source.class_names,
            shards=tuple(self.whole[name] for name in self.runs),
            source=source_facts,
            records=np.concatenate([np.concatenate(tables), labels[:, None]], axis=1),
            names=pack_names(self.source.image_name(index) for index in range(len(self.source))),
        )

    def _is_whole(self, shard: Shard) -> bool:
        path = self.output / shard.name
        try:
            return (
                path.stat().st_size == shard.bytes
                and shard.examples == len(self.runs[shard.name])
                and file_sha256(str(path)) == shard.sha256
            )
        except OSError:
            return False

    def _write(self, name: str) -> None:
        digest, size = hashlib.sha256(), 0
        temporary = self.output / f".{name}.part"
        try:
            with disk_errors_told(self.output), temporary.open("wb", buffering=_BLOCK) as file:
                for index in self.runs[name]:
                    if self._stop.is_set():
                        return
                    for part in framed(self._example(index)):
                        file.write(part)
                        digest.update(part)
                        size += len(part)
                    with self._lock:
                        self.done += 1
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, self.output / name)
                sync_to_disk(self.output)
                self._note(Shard(name, len(self.runs[name]), size, digest.hexdigest()))
        finally:
            temporary.unlink(missing_ok=True)

    def _note(self, shard: Shard) -> None:
        with self._lock, (self.output / JOURNAL).open("a") as journal:
            journal.write(json.dumps(asdict(shard)) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
            self.whole[shard.name] = shard

    def _example(self, index: int) -> bytes:
        name = self.source.image_name(index)
        try:
            data = self.source.read(index)
        except OSError as error:
            raise DataError(
                f"{printable(name)} cannot be read: {error.strerror or error}. Mend or remove it; shards that are "
                "whole are kept while the other images stay as they are."
            ) from error
        if len(data) != self.sizes[index]:
            raise DataError(
                f"Images must not change while they are packed; {printable(name)} had {self.sizes[index]:,} bytes "
                f"and has {len(data):,} now. Begin again with --fresh when they are at rest."
            )
        features: dict[str, bytes | int] = {IMAGE_KEY: data, "image/filename": name_bytes(name)}
        if (label := self.source.label(index)) >= 0:
            features |= {
                LABEL_KEY: label,
                "image/class/text": name_bytes(self.source.class_names[label]),
            }
        return encode_example(features)


def file_sha256(path: str) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    for position in range(0, storage.facts(path).size, _BLOCK):
        digest.update(storage.read_range(path, position, _BLOCK))
    return digest.hexdigest()


def shard_damage(index: ShardIndex, shard: Shard) -> str | None:
    """What is wrong with the bytes of a shard; None: they are those that were written."""
    try:
        same = file_sha256(shard_path(index, shard)) == shard.sha256
    except OSError as error:
        return printable(str(error))
    return None if same else "its SHA-256 is not that of the index"


def _facts_of(source: ClassFolders | ImageFolder) -> tuple[list[int], dict[str, Any]]:
    """Sizes of the images, and what tells these images from others and from what they were before a change."""
    try:
        # Threads: a network file system answers each question after a while, but many at a time.
        with ThreadPoolExecutor(16) as pool:
            facts = list(pool.map(source.facts, range(len(source)), chunksize=256))
    except OSError as error:
        raise DataError(f"An image cannot be looked at: {error}. Mend or remove it.") from error
    names = pack_names(source.image_name(index) for index in range(len(source)))
    sizes = [fact.size for fact in facts]
    times = [fact.changed_ns for fact in facts]
    return sizes, {
        "images": len(source),
        "bytes": sum(sizes),
        "names_sha256": hashlib.sha256(names).hexdigest(),
        "sizes_sha256": hashlib.sha256(np.array(sizes, "<i8").tobytes()).hexdigest(),
        TIMES: hashlib.sha256(np.array(times, "<i8").tobytes()).hexdigest(),
    }


def _already_packed(output: Path, kind: str, source: dict[str, Any], shards: int | None) -> ShardIndex:
    """The index of a finished packing, if it is one of these images as they are now."""
    index = read_index(str(output))
    before, now = dict(index.source), dict(source)
    changed = before.pop(TIMES, now[TIMES]) != now.pop(TIMES)
    if before != now:
        what = "other images"
    elif index.kind != kind:
        what = "these images in another kind"
    elif shards not in (None, len(index.shards)):
        what = "these images in another number of files"
    elif changed:
        raise UsageError(
            f"The images must be those that were packed into {output}. Received: the same names and sizes, but other "
            "times of their last change. If they were only copied or touched, the shards are good as they are: swav-tf "
            f"data check {output} tells whether they are whole. If images were changed, pack them anew with --fresh."
        )
    else:
        return index
    raise UsageError(
        f"{output} holds the shards of {what}: {index.source.get('images')} images, {index.source.get('bytes')} "
        f"bytes, {index.kind}, in {len(index.shards)} shards. Received: {source['images']} images, "
        f"{source['bytes']} bytes, {kind}{f', for {shards}' if shards else ''}. Give another folder, or begin anew "
        "with --fresh."
    )


def _require_whole(index: ShardIndex, threads: int, on_progress: Callable[[int], None]) -> None:
    """Reads all shards and holds them against their index."""
    bad, done = {}, 0
    with ThreadPoolExecutor(threads, thread_name_prefix="checksum") as pool:
        damages = pool.map(lambda shard: shard_damage(index, shard), index.shards)
        for shard, damage in zip(index.shards, damages, strict=True):
            if damage is not None:
                bad[shard.name] = damage
            done += shard.examples
            on_progress(done)
    if bad:
        raise DataError(
            f"The shards in {index.folder} must be whole, as their {INDEX} says; {len(bad)} of {len(index.shards)} are "
            f"damaged: {', '.join(f'{name} ({damage})' for name, damage in [*bad.items()][:_SHOWN])}"
            f"{', ...' if len(bad) > _SHOWN else ''}. Copy them from where they are whole, or pack the images again "
            "with --fresh; and look at the disk, which does not keep what it was given."
        )


def _require_room(output: Path, total: int, packing: _Packing) -> None:
    missing = [index for name, run in packing.runs.items() if name not in packing.whole for index in run]
    needed = sum(packing.sizes[index] for index in missing) + len(missing) * (_RECORD_BYTES + HEADER + FOOTER)
    free = shutil.disk_usage(output).free
    if needed > free:
        raise DataError(
            f"There must be room for the shards: {output} has {free / MIB:,.0f} MiB free, {needed / MIB:,.0f} MiB "
            f"of {total / MIB:,.0f} are still to be written. Make room or give another folder."
        )
