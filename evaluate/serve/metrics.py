"""Metrics of the service, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters of one service; `waiting` returns the number of accepted, unanswered images."""

    def __init__(self, waiting: Callable[[], float], *, largest_batch: int) -> None:
        self._registry = registry = CollectorRegistry()
        sizes = [2**power for power in range(largest_batch.bit_length()) if 2**power < largest_batch]
        self.requests = Counter("swav_requests", "Requests answered", ["path", "code"], registry=registry)
        self.images = Counter("swav_images", "Images whose features were computed", registry=registry)
        self.errors = Counter("swav_errors", "Requests refused or failed", ["reason"], registry=registry)
        self.batches = Histogram(
            "swav_batch_images", "Images per batch", registry=registry, buckets=[*sizes, largest_batch]
        )
        self.model_seconds = Histogram(
            "swav_model_seconds", "Time of a batch in the model", registry=registry, buckets=_SECONDS
        )
        self.request_seconds = Histogram(
            "swav_request_seconds",
            "Time from the head of a request to the end of its answer",
            ["path"],
            registry=registry,
            buckets=_SECONDS,
        )
        Gauge("swav_queue_images", "Images accepted and not yet answered", registry=registry).set_function(
            waiting
        )

    def text(self) -> bytes:
        """Return all values."""
        text: bytes = generate_latest(self._registry)
        return text
