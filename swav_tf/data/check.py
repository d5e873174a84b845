"""Read every image of a source once: find unreadable images and duplicates, count classes, measure sizes."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from swav_tf.data.decode import UndecodableImage, decode
from swav_tf.data.image_source import ImageSource
from swav_tf.data.shard_index import ShardIndex, shard_damage
from swav_tf.plumbing.names import printable
from swav_tf.plumbing.parallel import map_ahead
from swav_tf.plumbing.system import available_cores


class Spread(NamedTuple):
    """Minimum, median and maximum of some numbers."""

    least: float
    median: float
    greatest: float


@dataclass
class DataReport:
    """The result of a check."""

    images: int
    # Images by class name or number; empty without labels.
    classes: dict[str, int] = field(default_factory=dict)
    unlabeled: int = 0
    corrupt: dict[str, str] = field(default_factory=dict)  # name and reason of each unreadable image
    widths: list[int] = field(default_factory=list)  # of each readable image, pixels
    heights: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # bytes
    duplicates: list[list[str]] | None = None  # groups of names with the same bytes; None: not searched
    bad_shards: dict[str, str] | None = None  # name and reason of each damaged shard; None without an index

    @property
    def corrupt_share(self) -> float:
        """Share of the images that cannot be read, 0 to 1."""
        return len(self.corrupt) / self.images

    def spreads(self) -> dict[str, Spread]:
        """Return the spread of `width`, `height`, `bytes` and `images_per_class`, without empty ones."""
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
        """Return the report for JSON: printable names, and spreads instead of each image's numbers."""
        return {
            "images": self.images,
            "classes": {printable(name): count for name, count in self.classes.items()},
            "unlabeled": self.unlabeled,
            "corrupt": self.corrupt,
            "corrupt_share": self.corrupt_share,
            **{name: spread._asdict() for name, spread in self.spreads().items()},
            "duplicates": self.duplicates,
            "bad_shards": self.bad_shards,
        }


class _Finding(NamedTuple):
    name: str
    label: int
    reason: str | None = None  # why the image cannot be read
    height: int = 0
    width: int = 0
    size: int = 0
    digest: bytes = b""


def check_data(
    source: ImageSource,
    *,
    threads: int = 0,
    duplicates: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> DataReport:
    """Read and decode every image as training does, and check the SHA-256 of shards with an index.

    `threads` decode (0: one per core); `duplicates` finds images with the same bytes; `on_progress` gets the number of
    images done.
    """
    report, threads = DataReport(len(source)), threads or available_cores()
    same: dict[bytes, list[str]] = defaultdict(list)
    labels: Counter[int] = Counter()
    look = partial(_look, source, duplicates)
    for number, finding in enumerate(map_ahead(look, range(len(source)), threads=threads), start=1):
        labels[finding.label] += 1
        if finding.reason is not None:
            report.corrupt[finding.name] = finding.reason
        else:
            report.heights.append(finding.height)
            report.widths.append(finding.width)
            report.sizes.append(finding.size)
            if duplicates:
                same[finding.digest].append(finding.name)
        on_progress(number)
    index: ShardIndex | None = getattr(source, "index", None)  # of shards only
    if index is not None:
        damages = map_ahead(partial(shard_damage, index), index.shards, threads=threads)
        found = zip(index.shards, damages, strict=True)
        report.bad_shards = {shard.name: damage for shard, damage in found if damage is not None}
    report.unlabeled = labels.pop(-1, 0)
    named = source.class_names if max(labels, default=-1) < len(source.class_names) else ()
    names = dict(enumerate(named)) or {label: str(label) for label in sorted(labels)}
    report.classes = {name: labels[label] for label, name in names.items()}
    if duplicates:
        report.duplicates = [group for group in same.values() if len(group) > 1]
    return report


def _look(source: ImageSource, hashed: bool, index: int) -> _Finding:
    name, label, digest = printable(source.image_name(index)), -1, b""
    try:
        label = source.label(index)
        data = source.read(index)
        pixels = data if isinstance(data, np.ndarray) else decode(data, source.decoding)
    except (UndecodableImage, OSError) as error:
        return _Finding(name, label, printable(str(error)))
    if hashed:
        digest = hashlib.sha256(bytes(data)).digest()
    height, width = pixels.shape[:2]
    size = data.nbytes if isinstance(data, np.ndarray) else len(data)
    return _Finding(name, label, None, height, width, size, digest)
