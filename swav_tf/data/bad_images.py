"""The tally of images that cannot be read: each is named once, too many of them end the run."""

from __future__ import annotations

import threading
from pathlib import Path

from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable

_FIRST = 100  # so many tries are enough to see that the whole source is wrong


class BadImages:
    """Counts distinct unreadable images and lists them in a file. Safe to share between threads.

    An exception that a tf.data function raises reaches the training loop as a
    TensorFlow error with a stack trace for its message; the error that was meant is
    kept in `fatal`.
    """

    def __init__(self, path: Path | None, *, images: int, max_share: float) -> None:
        """List bad images in `path` (None: count only), and allow `max_share` (0 to 1) of `images`.

        One bad image is always allowed, unless `max_share` is 0. What `path` lists from
        an earlier part of the run counts, and is not listed again.
        """
        self.path = path
        self.images = images
        self.max_share = max_share
        self.fatal: DataError | None = None
        self._lock = threading.Lock()
        self._tried = 0
        self._tried_bad = 0
        self._names: set[str] = set()
        if path is not None and path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            self._names = {line.split("\t")[0] for line in lines}

    @property
    def count(self) -> int:
        """Distinct bad images so far."""
        return len(self._names)

    @property
    def allowed(self) -> int:
        """So many bad images do not stop the run."""
        return max(1, int(self.max_share * self.images)) if self.max_share > 0 else 0

    def good(self) -> None:
        """Count an image that could be read."""
        if self._tried < _FIRST:
            with self._lock:
                self._tried += 1

    def bad(self, name: str, reason: str) -> None:
        """Count and list an image that could not be read.

        Raises:
            DataError: if that makes too many.
        """
        name, reason = printable(name), printable(" ".join(reason.split()))  # one line, one tab between them
        with self._lock:
            if self.fatal is not None:
                raise self.fatal
            if self._tried < _FIRST:
                self._tried += 1
                self._tried_bad += 1
            if name not in self._names:
                self._names.add(name)
                if self.path is not None:
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write(f"{name}\t{reason}\n")
            self._stop_if_too_many(name, reason)

    def _stop_if_too_many(self, name: str, reason: str) -> None:
        # Waiting for 1 % of 1.28 million would take an hour when no image at all can be read.
        most_of_the_first = self._tried_bad > _FIRST / 2 and self.max_share < 0.5
        if len(self._names) <= self.allowed and not most_of_the_first:
            return
        found = (
            f"{self._tried_bad} of the first {self._tried}"
            if len(self._names) <= self.allowed
            else f"{len(self._names)} of {self.images}"
        )
        listed = f" They are listed in {self.path}." if self.path is not None else ""
        self.fatal = DataError(
            f"{found} images cannot be read; the recipe allows a share of {self.max_share:g} "
            f"(data.max_bad_share), {self.allowed} here.{listed} The last was {name}: {reason}. "
            "Mend or remove them, or raise data.max_bad_share."
        )
        raise self.fatal
