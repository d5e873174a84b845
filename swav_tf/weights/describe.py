"""What a file of weights is, without taking anything out of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swav_tf.weights.files import open_weights
from swav_tf.weights.fitting import wrong_with
from swav_tf.weights.tensors import WeightsError


@dataclass(frozen=True)
class Description:
    """A file of weights.

    Attributes:
        format: whose it is, in words.
        model: what the shapes tell, in words; None where they are no network that is known here.
        tensors: how many an import would look at; counters of steps are not counted.
        numbers: in all of them.
        left_out: names of tensors that an import would not take.
        problems: what is missing, left over or misshapen; one line each.
    """

    format: str
    model: str | None
    tensors: int
    numbers: int
    left_out: tuple[str, ...]
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def describe(source: Path) -> Description:
    """Tells what a file or folder of weights is.

    Raises:
        UsageError, WeightsError, CheckpointError: as `open_weights`.
    """
    found = open_weights(source)
    model: str | None = None
    wrong: tuple[str, ...]
    try:
        sizes, _, lines = wrong_with(found.tensors)
        model, wrong = str(sizes), tuple(lines)
    except WeightsError as error:
        wrong = (str(error),)
    return Description(
        format=found.format,
        model=model,
        tensors=len(found.tensors),
        numbers=sum(math.prod(tensor.shape) for tensor in found.tensors.values()),
        left_out=found.left_out,
        problems=wrong,
    )
