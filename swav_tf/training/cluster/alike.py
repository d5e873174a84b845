"""Workers that are to train together must have the same images and settings: they are held against each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from swav_tf.errors import UsageError
from swav_tf.recipe_files import AnyRecipe
from swav_tf.training.cluster.strategy import mean_over_workers, topology

# Settings of one machine: where its images lie, and how fast it reads them. The names of the images are compared.
MAY_DIFFER: dict[str, Any] = {
    "data": {
        "path",
        "kind",
        "threads",
        "processes",
        "prefetch_batches",
        "service",
        "max_bad_share",
        "validation_path",
    },
    "train": {"strategy", "logical_cpus"},
    "subset": True,
}
_SHOWN = 20  # differences


def check_alike(strategy: tf.distribute.Strategy, recipe: AnyRecipe, **more: Any) -> None:
    """Refuses to train unless all workers have the same; all must come here together.

    Nothing in the training itself would tell: gradients of other images, or other steps of the schedule, are
    summed all the same.

    Args:
        strategy: of all workers.
        recipe: all settings; those of one machine may differ.
        **more: what else must be the same, as JSON has it, by name.

    Raises:
        UsageError: something differs; on all workers.
    """
    if topology(strategy).workers == 1:
        return
    mine = {**recipe.model_dump(mode="json", exclude=MAY_DIFFER), **more}
    everyone = [json.loads(text) for text in _texts(strategy, json.dumps(mine))]
    if found := differences(everyone):
        left = f"\n  ... and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UsageError(
            "All workers must train by the same settings, on the same images, from the same weights. Received:\n"
            + "\n".join(found[:_SHOWN])
            + left
            + "\nGive the same recipe and the same options on every machine, and the same files: a copy that is not "
            "whole, or an older one, is the likeliest cause where images differ."
        )


def differences(everyone: Sequence[Mapping[str, Any]]) -> list[str]:
    """What workers have other than worker 0, a line each."""
    return [
        f"  worker {worker} has {name} {theirs!r}, worker 0 has {first!r}"
        for worker, facts in enumerate(everyone)
        for name, first, theirs in _pairs(everyone[0], facts, "")
    ]


def _pairs(first: Any, other: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(first, dict) and isinstance(other, dict):
        for key in sorted(first.keys() | other.keys()):
            yield from _pairs(first.get(key), other.get(key), f"{name}.{key}".lstrip("."))
    elif first != other:
        yield name, first, other


def _texts(strategy: tf.distribute.Strategy, mine: str) -> list[str]:
    """The text of every worker, by number."""
    coded = mine.encode()
    lengths = _gather(strategy, np.array([len(coded)]))[:, 0]
    padded = coded.ljust(4 * -(-int(lengths.max()) // 4))
    rows = _gather(strategy, np.frombuffer(padded, "<u4"))
    return [row.astype("<u4").tobytes()[:length].decode() for row, length in zip(rows, lengths, strict=True)]


def _gather(strategy: tf.distribute.Strategy, numbers: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Every worker's whole numbers, from 0 to 2**32, a row each: (workers, numbers)."""
    team = topology(strategy)
    table = np.zeros((team.workers, len(numbers)))
    table[team.worker] = numbers
    # The others give zero, so a sum is one worker's number.
    sums = np.array(mean_over_workers(strategy, table.ravel().tolist())) * team.workers
    return np.rint(sums).astype(np.int64).reshape(table.shape)
