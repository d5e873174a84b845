"""Pack images into TFRecord shards with an index.

A shard is complete under its name or absent. `shards.plan.json` lists what each shard is made of, so that a repeated
call keeps those whose images are unchanged. The index is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swav_tf.data import storage
from swav_tf.data.image_source import ImageSource
from swav_tf.data.names import PackedNames
from swav_tf.data.records import FOOTER, HEADER, read_record, record_table
from swav_tf.data.shard_index import (
    IMAGE_KEY,
    INDEX,
    LABEL_KEY,
    PLAN,
    WHOLE_LABELS,
    Shard,
    ShardIndex,
    index_files,
    is_unfinished,
    read_index,
    shard_damage,
)
from swav_tf.data.shard_parts import labels_sha256, part_of_images
from swav_tf.data.sources import fingerprint
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write, atomic_writes, file_sha256, locked_folder
from swav_tf.plumbing.log import log
from swav_tf.plumbing.names import name_bytes, printable
from swav_tf.plumbing.parallel import map_ahead
from swav_tf.plumbing.system import available_cores

Int64s = npt.NDArray[np.int64]
OnProgress = Callable[[int, str], None]  # gets a number of images and a stage

MIB: Final = 1 << 20
DEFAULT_SHARD_MIB: Final = 256
_RECORD_BYTES: Final = 256  # most of an example that is neither image nor name
_REPORTED: Final = 64  # images between reports of progress
_SHOWN: Final = 5  # damaged shards in a message
# Files of a packing, also unfinished ones and those of earlier versions.
_OWN: Final = re.compile(
    r"(\.part-[0-9a-f]{8}-|\.)?(index\.(json|records\.npy|names\.bin)|shards\.(plan\.json|journal\.jsonl)"
    r"|images-\d{5,}-of-\d{5,}\.tfrecord)(\.part)?"
)


@dataclass(frozen=True)
class Packed:
    """The result of a packing: its index, and the number of shards that an earlier call had written."""

    index: ShardIndex
    kept: int


def write_shards(
    source: ImageSource,
    output: Path | str,
    *,
    shards: int | None = None,
    shard_mib: int = DEFAULT_SHARD_MIB,
    part: tuple[int, int] | None = None,
    threads: int = 0,
    fresh: bool = False,
    on_progress: OnProgress = lambda images, stage: None,
) -> Packed:
    """Pack all images of a folder, or resume; if all are packed, compare the shards with their index.

    Args:
        source: the images.
        output: local folder: new, empty, or with an earlier packing of the same images.
        shards: number of shards; None: by `shard_mib`.
        shard_mib: approximate size of a shard, MiB.
        part: number, from 1, and count of the parts that the images are shared out in; None: pack all of them. A part
            has its own folder in the output, and the number of shards is its own.
        threads: shards written at once; 0: one for each core.
        fresh: remove the shards of an earlier packing first.
        on_progress: called with the number of images that are done and the stage: "found", "packed" and "indexed",
            or "found" and "checked".

    Raises:
        UsageError: the output contains something else or other images, or another process is writing it.
        DataError: an image cannot be read, has changed, or the disk is full; finished shards are kept. Or all was
            packed before, and shards are damaged.
    """
    if storage.is_remote(output):
        raise UsageError(
            f"Shards can only be written to a local folder; copy them afterwards. Received: {output}."
        )
    output = Path(output).expanduser()
    threads, identity = threads or available_cores(), dict[str, Any]()
    if part is not None:
        source, output, identity = part_of_images(source, output, *part)
    _refuse_other_files(output)
    with locked_folder(output):
        if fresh:
            _remove_packing(output)
        sizes, times, facts = _facts_of(source, on_progress)
        facts |= identity
        if (output / INDEX).exists() and not is_unfinished(str(output)):
            index = _already_packed(output, source.kind, facts, shards)
            _check_shards(index, threads, on_progress)
            return Packed(index, len(index.shards))
        count = shards or max(1, round(int(sizes.sum()) / (shard_mib * MIB)))
        if count > len(source):
            raise UsageError(
                f"Each shard needs at least one image: {len(source):,} images, {count:,} shards."
            )
        packing = _Packing(source, output, sizes, times, count)
        kept = packing.keep(threads)
        packing.require_room()
        packing.run(threads, on_progress)
        _write_index(packing, facts, threads, on_progress)
    return Packed(read_index(str(output)), kept)


def _refuse_other_files(output: Path) -> None:
    names = os.listdir(output) if output.is_dir() else []
    others = [name for name in names if not name.startswith(".")]
    if others and not {INDEX, PLAN} & set(names):
        raise UsageError(
            f"The folder of the shards must be new or empty. Received: {output}, which contains {len(others)} entries, "
            f"such as {printable(min(others))}. Choose another folder."
        )


class _Packing:
    """The shards of one call."""

    def __init__(self, source: ImageSource, output: Path, sizes: Int64s, times: Int64s, count: int) -> None:
        self.source, self.output, self.sizes, self.times = source, output, sizes, times
        bounds = [len(source) * number // count for number in range(count + 1)]
        self.runs = {
            f"images-{number:05d}-of-{count:05d}.tfrecord": range(bounds[number], bounds[number + 1])
            for number in range(count)
        }
        self.missing = list(self.runs)
        self.done = 0
        self._lock, self._stop = threading.Lock(), threading.Event()

    def keep(self, threads: int) -> int:
        """Keep finished shards of the same images, remove all others, write the plan; return the number kept."""
        plan = {name: self._inputs(run) for name, run in self.runs.items()}
        try:
            before = json.loads((self.output / PLAN).read_bytes())["inputs"]
        except (OSError, ValueError, KeyError, TypeError):
            before = {}
        same = [name for name in plan if before.get(name) == plan[name]]
        intact = map_ahead(self._is_intact, same, threads=threads)
        kept = {name for name, is_intact in zip(same, intact, strict=True) if is_intact}
        for path in list(self.output.iterdir()):
            if _OWN.fullmatch(path.name) and path.name not in {PLAN, *kept}:
                path.unlink()
        if before and not kept:
            log.warning(f"No shard in {self.output} matches these images and settings; all are packed again.")
        with atomic_write(self.output / PLAN) as part:
            part.write_text(json.dumps({"inputs": plan}))
        self.missing = [name for name in plan if name not in kept]
        self.done = sum(len(self.runs[name]) for name in kept)
        return len(kept)

    def require_room(self) -> None:
        """Raise a DataError if the missing shards do not fit the disk."""
        images = [index for name in self.missing for index in self.runs[name]]
        needed = int(self.sizes[images].sum()) + len(images) * (_RECORD_BYTES + HEADER + FOOTER)
        free = shutil.disk_usage(self.output).free
        if needed > free:
            raise DataError(
                f"The shards need {needed / MIB:,.0f} MiB; {self.output} has {free / MIB:,.0f} MiB free. Free some "
                "space, or choose another folder."
            )

    def run(self, threads: int, on_progress: OnProgress) -> None:
        """Write the missing shards."""
        on_progress(self.done, "packed")
        with ThreadPoolExecutor(threads) as pool:
            writing = [pool.submit(self._write, name, on_progress) for name in self.missing]
            try:
                for shard in as_completed(writing):
                    shard.result()
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
        on_progress(self.done, "packed")

    def _inputs(self, run: range) -> str:
        """Return a hash of the content of the shard with these images."""
        names = b"".join(
            name_bytes(f"{self.source.label(index)} {self.source.image_name(index)}") + b"\0" for index in run
        )
        part = slice(run.start, run.stop)
        parts = (self.source.kind.encode(), names, self.sizes[part].tobytes(), self.times[part].tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def _is_intact(self, name: str) -> bool:
        path = str(self.output / name)
        try:
            table = record_table(path)
            for offset, length in table.tolist():
                read_record(path, offset, length)
        except (OSError, DataError):
            return False
        return len(table) == len(self.runs[name])

    def _write(self, name: str, on_progress: OnProgress) -> None:
        import tensorflow as tf

        with atomic_write(self.output / name) as part:
            try:
                with tf.io.TFRecordWriter(str(part)) as writer:
                    for index in self.runs[name]:
                        if self._stop.is_set():
                            raise DataError("another shard failed")
                        writer.write(self._example(index))
                        with self._lock:
                            self.done += 1
                            if self.done % _REPORTED == 0:
                                on_progress(self.done, "packed")
            except tf.errors.OpError as error:
                raise DataError(
                    f"{self.output / name} could not be written: {error.message}. Free some space and repeat the "
                    "command: finished shards are kept."
                ) from error

    def _example(self, index: int) -> bytes:
        import tensorflow as tf

        name = self.source.image_name(index)
        try:
            data = self.source.read(index)
        except OSError as error:
            raise DataError(
                f"{printable(name)} cannot be read: {error.strerror or error}. Repair or remove it, and repeat the "
                "command: finished shards of unchanged images are kept."
            ) from error
        if len(data) != self.sizes[index]:
            raise DataError(
                f"Images must not change while they are packed; {printable(name)} had {self.sizes[index]:,} bytes "
                f"and has {len(data):,} now. Repeat the command when they no longer change."
            )
        assert isinstance(data, bytes)
        features: dict[str, bytes | int] = {IMAGE_KEY: data, "image/filename": name_bytes(name)}
        if (label := self.source.label(index)) >= 0:
            features[LABEL_KEY] = label
            features["image/class/text"] = name_bytes(self.source.class_names[label])
        example = tf.train.Example()
        for key, value in features.items():
            feature = example.features.feature[key]
            (feature.bytes_list if isinstance(value, bytes) else feature.int64_list).value.append(value)
        serialized: bytes = example.SerializeToString(deterministic=True)
        return serialized


def _facts_of(source: ImageSource, on_progress: OnProgress) -> tuple[Int64s, Int64s, dict[str, Any]]:
    """Return sizes and times of the images, and the facts by which an index identifies them."""
    found = np.empty((len(source), 2), "<i8")
    try:
        # Threads: a network file system answers slowly, but many requests at a time.
        for index, facts in enumerate(map_ahead(source.facts, range(len(source)), threads=16)):
            found[index] = facts
            if index % _REPORTED == 0:
                on_progress(index, "found")
    except OSError as error:
        raise DataError(f"The size of an image cannot be read: {error}. Repair or remove it.") from error
    sizes, times = np.ascontiguousarray(found.T)
    identity = {
        "images": len(source),
        "bytes": int(sizes.sum()),
        "names_sha256": fingerprint(source)["names_sha256"],
        "sizes_sha256": hashlib.sha256(sizes.tobytes()).hexdigest(),
        "times_sha256": hashlib.sha256(times.tobytes()).hexdigest(),
        "labels_sha256": labels_sha256(source),
    }
    return sizes, times, identity


def _already_packed(output: Path, kind: str, facts: dict[str, Any], shards: int | None) -> ShardIndex:
    """Read the index of a finished packing, and check that it is of these images as they are now."""
    index = read_index(str(output))
    # Early versions recorded no times and no labels.
    changed = [key for key, value in facts.items() if index.source.get(key, value) != value]
    others = set(changed) - {"times_sha256", "labels_sha256", WHOLE_LABELS}
    if index.kind != kind or shards not in (None, len(index.shards)) or others:
        raise UsageError(
            f"{output} contains shards of other images or settings: {index.source.get('images')} images, "
            f"{index.source.get('bytes')} bytes, {index.kind}, in {len(index.shards)} shards. Received: "
            f"{facts['images']} images, {facts['bytes']} bytes, {kind}{f', for {shards}' if shards else ''}. Choose "
            "another folder, or replace them with --fresh."
        )
    if "labels_sha256" in changed:
        raise UsageError(
            f"The images must have the labels that were packed into {output}. Received: other labels or class "
            "names. Pack them again with --fresh, or choose another folder."
        )
    if changed == [WHOLE_LABELS]:  # the labels of other parts were corrected
        index = replace(index, source=index.source | facts)
        document = json.loads((output / INDEX).read_bytes()) | {"source": index.source}
        with atomic_write(output / INDEX) as partial:
            partial.write_text(json.dumps(document, indent=1) + "\n")
        return index
    if changed:
        raise UsageError(
            f"The images must be those that were packed into {output}. Received: the same names and sizes, but other "
            "modification times. If they were only copied or touched, the shards are still valid (swav-tf data "
            f"check {output} checks them). If images were changed, pack them again with --fresh."
        )
    return index


def _check_shards(index: ShardIndex, threads: int, on_progress: OnProgress) -> None:
    bad, done = [], 0
    damages = map_ahead(partial(shard_damage, index), index.shards, threads=threads)
    for shard, damage in zip(index.shards, damages, strict=True):
        if damage is not None:
            bad.append(f"{shard.name} ({damage})")
        done += shard.examples
        on_progress(done, "checked")
    if bad:
        raise DataError(
            f"The shards in {index.folder} must match their {INDEX}; {len(bad)} of {len(index.shards)} are damaged: "
            f"{', '.join(bad[:_SHOWN])}{', ...' if len(bad) > _SHOWN else ''}. Restore them from an intact copy, or "
            "pack the images again with --fresh, and check the disk."
        )


def _write_index(packing: _Packing, facts: dict[str, Any], threads: int, on_progress: OnProgress) -> None:
    """Write the index of all shards, then remove the plan."""
    output, source = packing.output, packing.source

    def look(path: Path) -> tuple[Int64s, Shard]:
        table = record_table(str(path))
        return table, Shard(path.name, len(table), path.stat().st_size, file_sha256(path))

    tables, shards, done = [], [], 0
    for table, shard in map_ahead(look, [output / name for name in packing.runs], threads=threads):
        on_progress(done, "indexed")
        tables.append(table)
        shards.append(shard)
        done += len(table)
    index = ShardIndex(
        folder=str(output),
        kind=source.kind,
        class_names=source.class_names,
        shards=tuple(shards),
        source=facts,
        records=np.concatenate([np.concatenate(tables), source.labels()[:, None]], axis=1),
        names=PackedNames(source.image_name(index) for index in range(len(source))),
    )
    contents = index_files(index)
    with atomic_writes(*(output / name for name in contents)) as parts:
        for part, data in zip(parts, contents.values(), strict=True):
            part.write_bytes(data)
    (output / PLAN).unlink()


def _remove_packing(output: Path) -> None:
    """Remove what a packing wrote; last the files that identify the folder, so that a killed call can be repeated."""
    own = [path for path in output.iterdir() if _OWN.fullmatch(path.name)]
    for path in sorted(own, key=lambda path: path.name in (INDEX, PLAN)):
        path.unlink()
