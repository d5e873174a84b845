"""Things that arrive out of order, late or never, handed out by number. No TensorFlow."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

import numpy as np
import tensorflow as tf
from rich.console import Console

from swav_tf.data.decode import UndecodableImage
from swav_tf.data.order import CropsByPosition
from swav_tf.data.workers import Chunk, MakeRow, make_chunk, mend_chunk
from swav_tf.plumbing.errors import DataError, UsageError

Thing = TypeVar("Thing")


class Reordered(Generic[Thing]):
    """A stream of numbered things; what it owes for too long is made here instead.

    Who makes a thing makes no difference to it, so time decides only who works: never what comes out.
    """

    def __init__(
        self,
        stream: Callable[[], Iterator[tuple[int, Thing]]],
        make: Callable[[int], Thing],
        *,
        first: int,
        ahead: int,
        patience_seconds: float,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Takes things from `stream`, in a thread of its own, from the first `get` on.

        Args:
            stream: gives (number, thing) in any order, some twice, and may end or block at any time. An
                exception of it is raised by `get`.
            make: makes the thing of a number here.
            first: smallest number.
            ahead: so many things are kept until they are asked for; when so many later ones are there,
                a missing one counts as lost.
            patience_seconds: when the stream gives nothing for so long, things are made here until it
                gives something again.
            say: is told, in words, when things are made here and when the stream is back.
        """
        self.made_here = 0
        self._stream, self._make, self._ahead = stream, make, ahead
        self._patience, self._say = patience_seconds, say
        self._changed = threading.Condition()
        self._there: dict[int, Thing] = {}
        self._asked: set[int] = set()
        self._wanted_from, self._handed_out = first, set[int]()  # all below the one, and the others
        self._ended = self._stalled = False
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None
        self._last_arrival = 0.0

    @property
    def wanted_from(self) -> int:
        """All smaller numbers are handed out."""
        return self._wanted_from

    @property
    def ended(self) -> bool:
        """Whether nothing is wanted any more."""
        return self._ended

    def get(self, number: int) -> Thing | None:
        """The thing of a number, each asked for once; None after `end`."""
        with self._changed:
            if self._thread is None:
                self._last_arrival = time.monotonic()
                self._thread = threading.Thread(target=self._take, daemon=True)
                self._thread.start()
            self._asked.add(number)
            self._changed.notify_all()
            while not self._must_make(number):
                self._changed.wait(0.1)
            self._asked.discard(number)
            if number in self._there:
                self._hand_out(number)
                self._changed.notify_all()  # there is room again
                return self._there.pop(number)
            if self._ended:
                return None
            if self._failure is not None:
                raise self._failure
            self._hand_out(number)
            self.made_here += 1
        return self._make(number)

    def end(self) -> None:
        """Nothing is wanted any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _hand_out(self, number: int) -> None:
        self._handed_out.add(number)
        while self._wanted_from in self._handed_out:
            self._handed_out.discard(self._wanted_from)
            self._wanted_from += 1

    def _must_make(self, number: int) -> bool:
        """Whether the wait is over, by arrival or by loss."""
        if number in self._there or self._ended or self._failure is not None:
            return True
        if not self._stalled and time.monotonic() - self._last_arrival > self._patience:
            self._stalled = True
            self._say(f"nothing came for {self._patience:g} s")
        return self._stalled or self._is_full()

    def _is_full(self) -> bool:
        return len(self._there.keys() - self._asked) >= self._ahead

    def _take(self) -> None:
        try:
            for number, thing in self._stream():
                with self._changed:
                    self._last_arrival = time.monotonic()
                    if self._stalled:
                        self._stalled = False
                        self._say("")
                    if number < self._wanted_from or number in self._handed_out:  # late, or a second time
                        continue
                    self._there[number] = thing
                    self._changed.notify_all()
                    while self._is_full() and not self._ended:
                        self._changed.wait(0.1)
                        self._last_arrival = time.monotonic()  # it is us who do not take
                    if self._ended:
                        return
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            return
        with self._changed:
            if not self._ended:
                self._stalled = True  # what has not come by now was lost
                self._changed.notify_all()


PATIENCE_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 5.0
_AHEAD_IMAGES: Final = 512  # that the trainer keeps until their turn; 0.5 MB each at the paper's crops
_TOKEN: Final = "pyfunc_0"  # what TensorFlow calls the first Python function of a process
_CONNECT_SECONDS: Final = 10.0
_WORKER_TIMEOUT_MS: Final = 10_000  # a worker that was silent for so long is taken for dead
_JOB_TIMEOUT_MS: Final = 60_000  # the same for a trainer


class Served:
    """A running dispatcher (unless it joined another's) and worker; they end with `close`."""

    def __init__(self, crops: CropsByPosition, *, port: int, join: str | None, host: str) -> None:
        """Registers the crops and opens the ports.

        Args:
            crops: what the worker makes.
            port: of the dispatcher; with `join` of the worker; 0: a free one.
            join: `host:port` of a dispatcher that runs; None: run one here.
            host: name or address of this machine that trainers can reach.

        Raises:
            UsageError: a port is taken, or this process has registered functions before.
            DataError: no dispatcher answers at `join`.
        """
        self._registered = _register(crops)
        service = tf.data.experimental.service
        if join is not None:
            _require_answer(join)
        try:
            self._dispatcher = None
            if join is None:
                self._dispatcher = service.DispatchServer(
                    service.DispatcherConfig(
                        port=port,
                        worker_timeout_ms=_WORKER_TIMEOUT_MS,
                        job_gc_check_interval_ms=_JOB_TIMEOUT_MS // 4,
                        job_gc_timeout_ms=_JOB_TIMEOUT_MS,
                    )
                )
                join = self._dispatcher.target.partition("://")[2].replace("localhost", host)
            self.address = join
            self._worker = service.WorkerServer(
                service.WorkerConfig(
                    dispatcher_address=join,
                    worker_address=f"{host}:%port%",
                    port=0 if self._dispatcher else port,
                    heartbeat_interval_ms=1000,
                    dispatcher_timeout_ms=int(1000 * _CONNECT_SECONDS),
                )
            )
        except tf.errors.OpError as error:
            raise UsageError(
                f"The tf.data service needs a free port. Received: {port}; TensorFlow says: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def close(self) -> None:
        """Ends both."""
        del self._worker
        del self._dispatcher


def _register(crops: CropsByPosition) -> Any:
    """Makes the crops known to this process's tf.data as `_TOKEN`; what is returned must live as long."""
    facts = crops.facts()

    def answer(position: np.int64, wanted: bytes) -> list[Any]:
        theirs = json.loads(wanted)
        if theirs != facts:
            others = sorted(key for key in facts.keys() | theirs.keys() if facts.get(key) != theirs.get(key))
            raise DataError(
                f"The data service makes other crops than the trainer would: {', '.join(others)} differ. Start swav-tf "
                "data serve with the recipe, the settings and the images of the run."
            )
        try:
            made, label = crops.at(int(position))
        except (UndecodableImage, OSError):
            return [*crops.nothing(), np.int64(-1), np.bool_(False)]
        return [*made, np.int64(label), np.bool_(True)]

    def ask(position: tf.Tensor, wanted: tf.Tensor) -> Any:
        return tf.numpy_function(answer, [position, wanted], _types(crops), stateful=False)

    held = tf.function(ask).get_concrete_function(tf.TensorSpec((), tf.int64), tf.TensorSpec((), tf.string))
    tokens = {
        o.get_attr("token").decode() for o in held.graph.get_operations() if o.type == "PyFuncStateless"
    }
    if tokens != {_TOKEN}:
        raise UsageError(
            f"The worker's function must be the first of its process, {_TOKEN}; it is {tokens}. Start swav-tf data "
            "serve in a process of its own."
        )
    return held  # its graph owns the function


def _types(crops: CropsByPosition) -> list[tf.DType]:
    """Of crop groups, class, and whether the image could be read."""
    return [*(tf.uint8 for _ in crops.shapes), tf.int64, tf.bool]


class ServedCrops:
    """Chunks of crops from a service, by number; made here where the service fails."""

    def __init__(
        self,
        address: str,
        crops: CropsByPosition,
        position_of: Callable[[Any], Any],
        make: MakeRow,
        *,
        chunk: int,
        first: int,
        last: int,
        good: Callable[[], None],
    ) -> None:
        """Chunk k holds the images of places k * chunk to (k + 1) * chunk - 1 of this worker's row.

        Args:
            address: `host:port` of the dispatcher.
            crops: what the service is to make.
            position_of: the run's position of a place, of integers and of tensors.
            make: the crop groups and the class of a place, made here.
            chunk: images that come together.
            first: first chunk.
            last: one after the last chunk.
            good: is told of each image that the service could read.

        Raises:
            DataError: nothing answers at the address.
        """
        _require_answer(address)
        self._address, self._crops, self._make, self._chunk = address, crops, make, chunk
        self._position_of, self._last, self._good = position_of, last, good
        self._said = ""
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._chunks = Reordered(
            self._stream,
            self._make_chunk,
            first=first,
            ahead=max(4, _AHEAD_IMAGES // chunk),
            patience_seconds=PATIENCE_SECONDS,
            say=self._say,
        )
        self.get, self.end = self._chunks.get, self._chunks.end

    @property
    def made_here(self) -> int:
        """Chunks that the service did not give."""
        return self._chunks.made_here

    def _stream(self) -> Iterator[tuple[int, Chunk]]:
        """Chunks as they come; a service that went away, or began anew, is asked again.

        Raises:
            DataError: the service refuses.
        """
        while not self._chunks.ended:
            try:
                with tf.device("CPU:0"):
                    for number, *groups, labels, readable in self._data_set(self._chunks.wanted_from):
                        yield int(number), self._mended(int(number), groups, labels, readable)
                return  # what did not come was lost with a worker
            except tf.errors.OpError as error:
                if meant := re.search(r"DataError: (.+)", str(error)):
                    raise DataError(meant[1]) from error
                self._say(re.sub(r"^{{.*?}} ", "", str(error).splitlines()[0])[:200].rstrip(" ."))
            time.sleep(RETRY_SECONDS)

    def _data_set(self, first: int) -> tf.data.Dataset:
        wanted = json.dumps(self._crops.facts())
        shapes = [*self._crops.shapes, (), ()]

        def crops_of(place: tf.Tensor) -> tuple[tf.Tensor, ...]:
            inputs = [self._position_of(place), tf.constant(wanted)]
            tensors = tf.raw_ops.PyFuncStateless(input=inputs, token=_TOKEN, Tout=_types(self._crops))
            for tensor, shape in zip(tensors, shapes, strict=True):
                tensor.set_shape(shape)
            return tuple(tensors)

        def places_of(number: tf.Tensor) -> tf.data.Dataset:
            return tf.data.Dataset.range(number * self._chunk, (number + 1) * self._chunk)

        # A worker gets numbers of chunks one by one (DYNAMIC), and makes each chunk whole.
        places = tf.data.Dataset.range(first, self._last).flat_map(places_of)
        images = places.map(
            lambda place: (place, *crops_of(place)), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        chunks = images.batch(self._chunk, drop_remainder=True)
        chunks = chunks.map(lambda places, *rest: (places[0] // self._chunk, *rest)).prefetch(2)
        service = tf.data.experimental.service
        return chunks.apply(
            service.distribute(
                processing_mode=service.ShardingPolicy.DYNAMIC,
                service=f"grpc://{self._address}",
                compression=None,  # noise does not shrink
            )
        )

    def _mended(self, number: int, groups: list[tf.Tensor], labels: tf.Tensor, readable: tf.Tensor) -> Chunk:
        """The chunk, with what the service could not read made here."""
        chunk = [np.array(tensor) for tensor in (*groups, labels)]
        mend_chunk(chunk, readable.numpy().tolist(), self._make, self._places(number), good=self._good)
        return chunk

    def _make_chunk(self, number: int) -> Chunk:
        return make_chunk(self._make, self._places(number))

    def _places(self, number: int) -> range:
        return range(number * self._chunk, (number + 1) * self._chunk)

    def _say(self, what: str) -> None:
        said, self._said = self._said, what
        if what == said:
            return  # a service that stays away
        if what:
            self._console.print(
                f"[yellow]warning[/] data.service {self._address}: {what}. This process makes the crops itself until "
                "the service answers."
            )
        else:
            self._console.print(f"data.service {self._address} answers again")


def _require_answer(address: str) -> None:
    """Waits for something to listen there.

    Raises:
        DataError: nothing does, or it is no address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise DataError(f"data.service must be host:port, as 10.0.0.5:5050; got {address!r}.")
    until = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise DataError(
                    f"A tf.data service must answer at data.service, {address}; it does not: {error}. Start it with "
                    "swav-tf data serve, or set data.service=null to make the crops here."
                ) from error
            time.sleep(0.2)
