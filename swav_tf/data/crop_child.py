"""A process that makes crops for a trainer. No TensorFlow.

    python -m swav_tf.data.crop_child MEMORY SOCKET...

The arguments are descriptors. The first socket brings what crops are to be made; then each asks, again and again, for a
chunk in its own part of the memory: a list of positions comes in, a list of classes goes out, None for an image that
cannot be read. It ends when the sockets close, that is with the trainer.
"""

from __future__ import annotations

import contextlib
import mmap
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Final

import numpy as np

from swav_tf.data.augment import Image
from swav_tf.data.order import CropsByPosition

SEATS: Final = 2  # of a process: while the trainer copies one chunk, the next is made


def seats_in(memory: mmap.mmap, shapes: Sequence[tuple[int, ...]], chunk: int) -> list[list[Image]]:
    """The memory as SEATS times the crop groups of a chunk, each uint8 (chunk, count, size, size, 3)."""
    ends = np.cumsum([chunk * int(np.prod(shape)) for shape in shapes])
    return [
        [part.reshape(chunk, *shape) for part, shape in zip(np.split(seat, ends[:-1]), shapes, strict=True)]
        for seat in np.frombuffer(memory, np.uint8).reshape(SEATS, ends[-1])
    ]


def put(crops: CropsByPosition, positions: Sequence[int], out: list[Image]) -> list[int | None]:
    """Puts the crops of these positions into `out`; returns their classes, None for what cannot be read."""
    classes: list[int | None] = []
    for row, position in enumerate(positions):
        try:
            made, label = crops.at(position)
        except Exception:  # whatever it is, the trainer tries the same itself, and tells
            classes.append(None)
            continue
        for whole, one in zip(out, made, strict=True):
            whole[row] = one
        classes.append(label)
    return classes


def main() -> None:
    """Answers until the trainer is gone."""
    # Signals that a scheduler sends to all processes of a job are the trainer's to understand.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    descriptor, *numbers = map(int, sys.argv[1:])
    sockets: list[Connection[Any, Any]] = [Connection(number) for number in numbers]
    with contextlib.suppress(EOFError, OSError):
        crops, chunk = sockets[0].recv()
        places = dict(zip(sockets, seats_in(mmap.mmap(descriptor, 0), crops.shapes, chunk), strict=True))
        sockets[0].send("ready")
        while True:
            for socket in wait(sockets):
                assert isinstance(socket, Connection)
                socket.send(put(crops, socket.recv(), places[socket]))


if __name__ == "__main__":
    main()
