"""Looks at every image of a source once: readable, how large, of what class, there twice? No TensorFlow."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from swav_tf.data.decode import UndecodableImage, decode
from swav_tf.data.shard_index import ShardIndex
from swav_tf.data.sharding import shard_damage
from swav_tf.data.sources import ImageSource
from swav_tf.plumbing.names import printable
from swav_tf.plumbing.system import available_cores

_AHEAD = 256  # images that are looked at before their turn


class Spread(NamedTuple):
    """Least, middle and greatest of some numbers."""

    least: float
    median: float
    greatest: float


@dataclass
class DataReport:
    """What a check found.

    Attributes:
        images: how many there are.
        classes: images of each class by name; a number's text where classes have no names. Empty without labels.
        unlabelled: images without a class.
        corrupt: name and reason of each image that cannot be read.
        widths, heights, sizes: pixels, pixels and bytes of each image that can.
        duplicates: groups of names with the same bytes; None if they were not looked for.
        bad_shards: name and reason of each shard whose checksum is not that of the index; None without an index.
    """

    images: int
    classes: dict[str, int] = field(default_factory=dict)
    unlabelled: int = 0
    corrupt: dict[str, str] = field(default_factory=dict)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    duplicates: list[list[str]] | None = None
    bad_shards: dict[str, str] | None = None

    @property
    def corrupt_share(self) -> float:
        """Share of the images that cannot be read, 0 to 1."""
        return len(self.corrupt) / self.images

    def spreads(self) -> dict[str, Spread]:
        """Of width, height, bytes and images a class, those that there are."""
        found = {
            "width": self.widths,
            "height": self.heights,
            "bytes": self.sizes,
            "images_per_class": list(self.classes.values()),
        }
        return {
            name: Spread(min(values), float(np.median(values)), max(values))
            for name, values in found.items()
            if values
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON: names printable, spreads instead of each image's numbers."""
        return {
            "images": self.images,
            "classes": {printable(name): count for name, count in self.classes.items()},
            "unlabelled": self.unlabelled,
            "corrupt": self.corrupt,
            "corrupt_share": self.corrupt_share,
            **{name: spread._asdict() for name, spread in self.spreads().items()},
            "duplicates": self.duplicates,
            "bad_shards": self.bad_shards,
        }


class _Look(NamedTuple):
    name: str
    label: int
    reason: str | None
    height: int
    width: int
    size: int
    digest: bytes


def check_data(
    source: ImageSource,
    *,
    threads: int = 0,
    duplicates: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> DataReport:
    """Reads and decodes every image, as training would; of shards with an index the checksums too.

    Args:
        source: images.
        threads: that decode; 0: one a core.
        duplicates: find images whose bytes are the same.
        on_progress: is told how many images are done.
    """
    threads = threads or available_cores()
    report = DataReport(len(source))
    index = getattr(source, "index", None)
    shards = _ShardChecks(index) if isinstance(index, ShardIndex) else None
    same: dict[bytes, list[str]] = {}
    labels: Counter[int] = Counter()
    for number, look in enumerate(_looks(source, threads, hashed=duplicates), start=1):
        labels[look.label] += 1
        if look.reason is not None:
            report.corrupt[look.name] = look.reason
        else:
            report.heights.append(look.height)
            report.widths.append(look.width)
            report.sizes.append(look.size)
            if duplicates:
                same.setdefault(look.digest, []).append(look.name)
        if shards is not None:
            shards.looked_at(number)
        on_progress(number)
    report.bad_shards = None if shards is None else shards.bad()
    report.unlabelled = labels.pop(-1, 0)
    named = source.class_names if max(labels, default=-1) < len(source.class_names) else ()
    report.classes = (
        {name: labels[label] for label, name in enumerate(named)}
        if named
        else {str(label): labels[label] for label in sorted(labels)}
    )
    if duplicates:
        report.duplicates = [names for names in same.values() if len(names) > 1]
    return report


def _looks(source: ImageSource, threads: int, *, hashed: bool) -> Iterator[_Look]:
    """What there is to say of each image, in order."""

    def look(index: int) -> _Look:
        name, label, digest = printable(source.image_name(index)), -1, b""
        try:
            label = source.label(index)
            data = source.read(index)
            if hashed:
                digest = hashlib.sha256(data.tobytes() if isinstance(data, np.ndarray) else data).digest()
            pixels = data if isinstance(data, np.ndarray) else decode(data)
        except (UndecodableImage, OSError) as error:
            return _Look(name, label, printable(str(error)), 0, 0, 0, b"")
        height, width = pixels.shape[:2]
        size = data.nbytes if isinstance(data, np.ndarray) else len(data)
        return _Look(name, label, None, height, width, size, digest)

    with ThreadPoolExecutor(threads, thread_name_prefix="check") as pool:
        waiting: deque[Future[_Look]] = deque()
        try:
            for index in range(len(source)):
                waiting.append(pool.submit(look, index))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # who asked may have stopped
            for future in waiting:
                future.cancel()


class _ShardChecks:
    """The checksums of shards, each computed when its images have been read and its bytes are still in memory."""

    def __init__(self, index: ShardIndex) -> None:
        self._index = index
        self._ends = np.cumsum([shard.examples for shard in index.shards]).tolist()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checksum")
        self._reasons: list[Future[str | None]] = []

    def looked_at(self, images: int) -> None:
        """So many images, from the first on, have been read."""
        while len(self._reasons) < len(self._ends) and self._ends[len(self._reasons)] <= images:
            shard = self._index.shards[len(self._reasons)]
            self._reasons.append(self._pool.submit(shard_damage, self._index, shard))

    def bad(self) -> dict[str, str]:
        """Name and reason of each shard that is not as the index says."""
        reasons = [reason.result() for reason in self._reasons]
        self._pool.shutdown()
        return {
            shard.name: reason
            for shard, reason in zip(self._index.shards, reasons, strict=True)
            if reason is not None
        }
