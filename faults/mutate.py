"""Damage to bytes, as disks, downloads and malice make it; functions of a generator alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Numbers at which readers of binary formats trip.
_EDGES = tuple(
    value.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("little", "big")
)


def flip_bits(data: bytes, draw: np.random.Generator) -> bytes:
    """One to eight bits, anywhere."""
    changed = bytearray(data)
    for _ in range(int(draw.integers(1, 9))):
        changed[int(draw.integers(len(changed)))] ^= 1 << int(draw.integers(8))
    return bytes(changed)


def flip_early_bits(data: bytes, draw: np.random.Generator) -> bytes:
    """Bits among the first 256 bytes, where headers stand."""
    return flip_bits(data[:256], draw) + data[256:]


def cut(data: bytes, draw: np.random.Generator) -> bytes:
    """The end is missing: a download that broke off."""
    return data[: int(draw.integers(len(data)))]


def cut_a_little(data: bytes, draw: np.random.Generator) -> bytes:
    """The last bytes are missing."""
    return data[: -int(draw.integers(1, min(64, len(data)) + 1))]


def zero_block(data: bytes, draw: np.random.Generator) -> bytes:
    """A block of zeros, as a sparse file has after a power cut."""
    start = int(draw.integers(len(data)))
    length = min(int(draw.integers(1, 4097)), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def random_block(data: bytes, draw: np.random.Generator) -> bytes:
    """Up to 64 bytes are replaced."""
    start = int(draw.integers(len(data)))
    length = min(int(draw.integers(1, 65)), len(data) - start)
    return data[:start] + draw.bytes(length) + data[start + length :]


def insert(data: bytes, draw: np.random.Generator) -> bytes:
    """Bytes too many."""
    start = int(draw.integers(len(data) + 1))
    return data[:start] + draw.bytes(int(draw.integers(1, 65))) + data[start:]


def remove(data: bytes, draw: np.random.Generator) -> bytes:
    """Bytes too few."""
    start = int(draw.integers(len(data)))
    return data[:start] + data[start + int(draw.integers(1, 65)) :]


def edge_number(data: bytes, draw: np.random.Generator) -> bytes:
    """A size or a count that is absurd."""
    value = _EDGES[int(draw.integers(len(_EDGES)))]
    start = int(draw.integers(max(1, len(data) - len(value))))
    return data[:start] + value + data[start + len(value) :]


def append(data: bytes, draw: np.random.Generator) -> bytes:
    """Something stands behind the end."""
    return data + draw.bytes(int(draw.integers(1, 65)))


MUTATORS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    flip_bits,
    flip_early_bits,
    cut,
    cut_a_little,
    zero_block,
    random_block,
    insert,
    remove,
    edge_number,
    append,
)


def mutated(data: bytes, draw: np.random.Generator) -> tuple[bytes, str]:
    """Damaged data that differ from the whole ones, and the damage's name."""
    while True:
        mutator = MUTATORS[int(draw.integers(len(MUTATORS)))]
        changed = mutator(data, draw)
        if changed != data:
            return changed, mutator.__name__
