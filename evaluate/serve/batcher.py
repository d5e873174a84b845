"""Batches of the images of concurrent requests, computed by one thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeAlias

import numpy as np

from swav_tf.data.augment import Image

_Waiting: TypeAlias = "tuple[Image, Future[np.ndarray]]"


class Batcher:
    """Compute the rows of images that come one by one, in batches.

    A batch starts when it is full or when its first image has waited long enough. Images that arrive while a batch is
    computed make up the next one.

    `compute` maps images (n, height, width, 3) to n rows, in one thread; `most` is the largest batch.
    """

    def __init__(
        self, compute: Callable[[np.ndarray], np.ndarray], *, most: int, wait_seconds: float
    ) -> None:
        self._compute, self._most, self._wait_seconds = compute, most, wait_seconds
        self._closed = False
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, image: Image, row: Future[np.ndarray]) -> None:
        """Queue an image; `row` receives its result, and must not be cancelable any more."""
        self._queue.put((image, row))

    def hurry(self) -> None:
        """Compute what is queued, and from now on each batch without waiting."""
        self._wait_seconds = 0.0
        self._queue.put(None)

    def close(self) -> None:
        """Compute what is queued, then end the thread."""
        self._closed = True
        self.hurry()
        self._thread.join()

    def _work(self) -> None:
        for batch in self._batches():
            self._answer(batch)

    def _answer(self, batch: list[_Waiting]) -> None:
        try:
            rows = self._compute(np.stack([image for image, _ in batch]))
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:  # an image whose features overflow fails no other request
                self._answer([one])
        else:
            for (_, row), found in zip(batch, rows, strict=True):
                row.set_result(found)

    def _batches(self) -> Iterator[list[_Waiting]]:
        while not (self._closed and self._queue.empty()):
            batch: list[_Waiting] = []
            found, ends = self._queue.get(), time.monotonic() + self._wait_seconds
            while found is not None:  # None: start at once
                batch.append(found)
                if len(batch) == self._most:
                    break
                try:
                    found = self._queue.get(timeout=max(0.0, ends - time.monotonic()))
                except queue.Empty:
                    break
            if batch:
                yield batch
