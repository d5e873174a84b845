"""What a machine's limits allow of a network, and what stands in the way. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evaluate.backends.onnx_metadata import Precision
from evaluate.benchmark.work import Work

Bound = Literal["transfer", "launch", "memory", "compute"]


@dataclass(frozen=True)
class Limits:
    """What the machine can do.

    Attributes:
        flops: operations a second in the cell's precision.
        bandwidth: bytes a second.
    """

    flops: float
    bandwidth: float

    def attainable(self, work: Work, precision: Precision, batch: int) -> float:
        """Images a second, if nothing but arithmetic and memory cost time: the roofline."""
        return min(self.flops / work.flops, self.bandwidth / work.bytes_per_image(precision, batch))

    def by_memory(self, work: Work, precision: Precision, batch: int) -> bool:
        """Whether memory is the lower of the two."""
        return self.bandwidth / work.bytes_per_image(precision, batch) < self.flops / work.flops


def what_bounds(
    *, transfer_share: float | None, fixed_share: float | None, by_memory: bool | None
) -> Bound | None:
    """The largest part of a call's time.

    Args:
        transfer_share: of copies between host and GPU, 0 to 1; None where there are none.
        fixed_share: of what a call costs whatever the batch, 0 to 1; None if not known.
        by_memory: whether the roofline here is that of memory; None if not known.

    Returns:
        transfer or launch where they take half of the time or more; else memory or compute; None if not known.
    """
    shares: dict[Bound, float] = {"transfer": transfer_share or 0.0, "launch": fixed_share or 0.0}
    largest = max(shares, key=lambda name: shares[name])
    if shares[largest] >= 0.5:
        return largest
    return None if by_memory is None else ("memory" if by_memory else "compute")
