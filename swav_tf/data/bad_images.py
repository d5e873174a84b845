"""The tally of unreadable images: each is listed once, and too many are an error."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NoReturn

from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.files import write_csv
from swav_tf.plumbing.names import printable

_FIRST = 100  # this many tries show that nothing at all can be read; 1 % of 1.28 million would take an hour


class BadImages:
    """Count distinct unreadable images. Threads may share a tally.

    Attributes:
        reasons: why images cannot be read, by printable name.
    """

    def __init__(
        self, path: Path | None = None, *, images: int, max_share: float, setting: str = "data.max_bad_share"
    ) -> None:
        """Continue the list `path` of an earlier part of the run, with a name and a reason a line.

        Its images count towards the limit only once they are bad again: they may have been repaired. `max_share`,
        whose setting is `setting`, is the share of `images` that may be bad, 0 to 1. Unless it is 0, one bad image is
        always allowed.
        """
        self.path, self.images, self.max_share, self.setting = path, images, max_share, setting
        self.allowed = max(1, int(max_share * images)) if max_share > 0 else 0
        self._lock = threading.Lock()
        self._tried = self._tried_bad = 0
        self._met: set[str] = set()  # by this part of the run
        self.reasons: dict[str, str] = {}
        if path is not None and path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            self.reasons = {name: reason for name, _, reason in (line.partition("\t") for line in lines)}

    def restore(self, reasons: dict[str, str]) -> None:
        """Count the images that an earlier part of the work met, which are not tried again."""
        self.reasons, self._met = reasons, set(reasons)

    @property
    def count(self) -> int:
        """Number of distinct bad images so far."""
        return len(self.reasons)

    def good(self) -> None:
        """Count a readable image."""
        if self._tried < _FIRST:
            with self._lock:
                self._tried += 1

    def bad(self, name: str, reason: str) -> None:
        """Count and list an unreadable image.

        Raises:
            DataError: there are too many.
        """
        name, reason = printable(name), printable(" ".join(reason.split()))  # one line with one tab
        with self._lock:
            if self._tried < _FIRST and name not in self._met:
                self._tried += 1
                self._tried_bad += 1
            self._met.add(name)
            if name not in self.reasons:
                self.reasons[name] = reason
                if self.path is not None:
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write(f"{name}\t{reason}\n")
            if len(self._met) > self.allowed:
                self._stop(f"{len(self._met)} of {self.images}", name, reason)
            # In training, whose order is random.
            if self.path is not None and self._tried_bad > _FIRST / 2 and self.max_share < 0.5:
                self._stop(f"{self._tried_bad} of the first {self._tried}", name, reason)

    def _stop(self, found: str, name: str, reason: str) -> NoReturn:
        listed = f" They are listed in {self.path}." if self.path is not None else ""
        raise DataError(
            f"{found} images cannot be read. {self.setting}={self.max_share:g} allows at most {self.allowed} of "
            f"{self.images}.{listed} The last was {name}: {reason}. Repair or remove them, or raise {self.setting}."
        )

    def write_list(self, path: Path) -> None:
        """Write names and reasons as CSV; remove the file if there are none."""
        if self.reasons:
            write_csv(path, ("name", "reason"), self.reasons.items())
        else:
            path.unlink(missing_ok=True)
