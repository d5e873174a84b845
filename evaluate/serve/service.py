"""The service: its answers, refusals and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from evaluate.backends.backend import Backend
from evaluate.serve.batcher import Batcher
from evaluate.serve.gallery import Gallery
from swav_tf.data.augment import Image
from swav_tf.data.decode import Decoding, TooManyPixels, UndecodableImage, decode, evaluation_view
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.system import available_cores

BODY_SECONDS: Final = 30.0  # in which the body of a request must arrive
NPY: Final = "application/x-npy"
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
_PAGE: Final = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """Limits of the service."""

    batch: int = 32  # images in a batch
    wait_ms: float = 2.0  # that the first image of a batch waits for others
    body: int = 32 * 2**20  # bytes in a request
    images: int = 64  # in a request
    queue: int = 256  # accepted images that are not yet answered, at least `images`
    pixels: int | None = None  # in an image; None for `data.max_pixels` of the model's recipe


class Metrics:
    """Counters of one service; `waiting` returns the number of accepted, unanswered images."""

    def __init__(self, waiting: Callable[[], float], *, largest_batch: int) -> None:
        self.registry = CollectorRegistry()
        counter, histogram = (
            partial(Counter, registry=self.registry),
            partial(Histogram, registry=self.registry),
        )
        self.requests = counter("swav_requests", "Requests answered", ["path", "code"])
        self.images = counter("swav_images", "Images whose features were computed")
        self.errors = counter("swav_errors", "Requests refused or failed", ["reason"])
        sizes = [2**power for power in range(largest_batch.bit_length()) if 2**power < largest_batch]
        self.batches = histogram("swav_batch_images", "Images per batch", buckets=[*sizes, largest_batch])
        self.model_seconds = histogram("swav_model_seconds", "Time of a batch in the model", buckets=_BUCKETS)
        meaning = "Time from the head of a request to the end of its answer"
        self.request_seconds = histogram("swav_request_seconds", meaning, ["path"], buckets=_BUCKETS)
        queue = Gauge("swav_queue_images", "Images accepted and not yet answered", registry=self.registry)
        queue.set_function(waiting)


class Refusal(Exception):
    """Answer a request with an error: status, a reason for the metrics, and a sentence that states what must hold."""

    def __init__(
        self, status: int, reason: str, sentence: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.reason, self.headers = status, reason, headers


class _Parser(MultiPartParser):
    """Know whether the closing boundary was received: Starlette drops the file that was cut off, without an error."""

    is_complete = False

    def on_end(self) -> None:
        self.is_complete = True


class Service:
    """The ASGI application. Close it after the last answer."""

    def __init__(
        self, model: Backend, limits: Limits, *, gallery: Gallery | None = None, threads: int = 0
    ) -> None:
        if limits.images > limits.queue:
            raise UsageError(
                f"The queue must hold the images of one request, {limits.images}. Received: {limits.queue}."
            )
        self._model, self._limits, self._gallery = model, limits, gallery
        self._decoding = Decoding(model.data.background, limits.pixels or model.data.max_pixels)
        self._waiting = 0  # accepted, unanswered images; changed by the event loop only
        self.status = "ready"
        self.metrics = Metrics(lambda: self._waiting, largest_batch=limits.batch)
        self._threads = ThreadPoolExecutor(threads or available_cores(), "decode")
        self._batcher = Batcher(self._compute, most=limits.batch, wait_seconds=limits.wait_ms / 1000)
        routes = [
            Route("/features", self._features, methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        if gallery is not None:
            routes += [
                Route("/similar", self._similar, methods=["POST"]),
                Route("/images/{row:int}", self._picture),
                Route("/", self._page),
            ]
        self._paths = [route.path for route in routes]
        handlers: dict[Any, Any] = {
            Refusal: self._refuse,
            HTTPException: self._not_served,
            Exception: self._fail,
        }
        self._app = Starlette(routes=routes, exception_handlers=handlers)

    def stop(self) -> None:
        """Close the connection after each answer, and wait no longer to fill a batch."""
        self.status = "stopping"
        self._batcher.hurry()

    def close(self) -> None:
        """Finish accepted requests and end the threads."""
        self._threads.shutdown()
        self._batcher.close()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, and count it."""
        started, path = time.monotonic(), "other"  # not the path itself: scanners would create endless series
        if scope["path"] in self._paths:
            path = scope["path"]
        elif scope["path"].startswith("/images/"):
            path = "/images"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, message["status"]).inc()
                if self.status == "stopping":
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:  # `_fail` has answered it
            log.exception(f"{scope['method']} {path} failed.")
        self.metrics.request_seconds.labels(path).observe(time.monotonic() - started)

    # === Answers ===

    async def _features(self, request: Request) -> Response:
        async with self._computed(request) as (names, features):
            if NPY in request.headers.get("accept", ""):
                file = io.BytesIO()
                np.save(file, features)
                return Response(file.getvalue(), media_type=NPY)
            return self._answer(names, features=features)

    async def _similar(self, request: Request) -> Response:
        assert self._gallery is not None
        most = self._gallery.most
        asked = request.query_params.get("k", str(min(10, most)))
        k = int(asked) if asked.isdecimal() and len(asked) < 9 else 0
        if not 1 <= k <= most:
            raise Refusal(400, "k", f"k must be a whole number from 1 to {most}. Received: {asked[:20]}.")
        async with self._computed(request) as (names, features):
            found = await self._in_thread(self._gallery.search, features, k)
            return self._answer(names, similar=found)

    def _answer(self, names: list[str], **results: Any) -> Response:
        return _json({"weights_sha256": self._model.facts.weights_sha256, "names": names, **results})

    async def _picture(self, request: Request) -> Response:
        assert self._gallery is not None
        picture = await self._in_thread(self._gallery.picture, request.path_params["row"])
        if picture is None:
            raise HTTPException(404, "no such row of the features, or no such image in --images")
        return Response(picture, media_type="image/jpeg")

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(_PAGE)

    async def _health(self, request: Request) -> Response:
        if self.status == "failing":  # no client sends images any more, so only this detects a recovery
            side = self._model.input_view.crop
            with contextlib.suppress(Refusal):
                await self._row(np.full, (side, side, 3), 128, np.uint8)
        health = {
            "status": self.status,
            "model": self._model.facts.as_dict() | {"path": Path(self._model.facts.path).name},
            "view": self._model.input_view.model_dump(),
            "dimension": self._model.feature_dim,
            "gallery": self._gallery and self._gallery.facts,
        }
        return _json(health, 200 if self.status == "ready" else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")

    # === From a request to features ===

    @contextlib.asynccontextmanager
    async def _computed(self, request: Request) -> AsyncGenerator[tuple[list[str], np.ndarray], None]:
        """Yield names and features (n, F) of the images in a request, which occupy the queue until the end."""
        accepted = 0
        try:
            self._accept(1)  # before its body takes memory
            accepted = 1
            files = await self._files(request)
            self._accept(len(files) - 1)
            accepted = len(files)
            tasks = [self._row(self._view, name, data) for name, data in files]
            rows = await asyncio.gather(*tasks, return_exceptions=True)  # all, before their places are free
            for row in rows:
                if isinstance(row, BaseException):
                    raise row
            yield [name for name, _ in files], np.stack(rows)  # type: ignore[arg-type]
        finally:
            self._waiting -= accepted

    def _row(self, view: Callable[..., Image], *arguments: Any) -> asyncio.Future[np.ndarray]:
        """Return the future features of an image, whose view a thread prepares."""
        row: Future[np.ndarray] = Future()
        row.set_running_or_notify_cancel()  # a canceled request must not end the model's thread

        def prepare() -> None:  # and submit, without a detour through the event loop
            try:
                self._batcher.submit(view(*arguments), row)
            except Exception as error:
                row.set_exception(error)

        self._threads.submit(prepare)
        return asyncio.wrap_future(row)

    def _in_thread(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _accept(self, images: int) -> None:
        if self._waiting + images > self._limits.queue:
            sentence = f"At most {self._limits.queue} images may wait. The queue is full: try again later."
            raise Refusal(503, "queue", sentence, {"Retry-After": "1"})
        self._waiting += images

    async def _files(self, request: Request) -> list[tuple[str, bytes]]:
        """Return names and contents of the files in a request's body; the name of a bare image is `image`."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            async with asyncio.timeout(BODY_SECONDS), contextlib.aclosing(self._chunks(request)) as chunks:
                if kind == "multipart/form-data":
                    return await self._parts(request, chunks)
                if kind == "application/octet-stream" or kind.startswith("image/"):
                    return [("image", b"".join([chunk async for chunk in chunks]))]
        except TimeoutError:
            raise Refusal(408, "slow", f"The body must arrive within {BODY_SECONDS:.0f} s.") from None
        except ClientDisconnect:
            raise Refusal(400, "disconnected", "The body must be complete.") from None
        raise Refusal(
            415,
            "type",
            "Content-Type must be image/..., such as image/jpeg, or application/octet-stream for one image, or "
            f"multipart/form-data for several. Received: {kind or 'none'}.",
        )

    async def _parts(self, request: Request, chunks: AsyncGenerator[bytes, None]) -> list[tuple[str, bytes]]:
        most = self._limits.images
        parser = _Parser(request.headers, chunks, max_files=most, max_fields=0)
        parser.spool_max_size = self._limits.body  # no files on the disk
        wanted = f"A multipart body must contain 1 to {most} files, each with a filename. Received: "
        try:
            form = await parser.parse()
        except MultiPartException as error:
            too_many = error.message.startswith("Too many files")
            status, reason = (413, "images") if too_many else (400, "multipart")
            raise Refusal(status, reason, wanted + error.message) from None
        if not parser.is_complete:
            raise Refusal(400, "multipart", f"{wanted}a body without its closing boundary: it was cut off.")
        files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not files:
            raise Refusal(400, "multipart", f"{wanted}none.")
        return [(file.filename or "image", await file.read()) for file in files]

    async def _chunks(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Yield the body in parts; refuse one that is too large as early as possible."""
        most, declared, received = self._limits.body, request.headers.get("content-length", ""), 0
        too_large = Refusal(413, "body", f"The body of a request must have at most {most:,} bytes.")
        if declared.isdecimal() and int(declared) > most:
            raise too_large
        async for chunk in request.stream():
            received += len(chunk)
            if received > most:
                raise too_large
            yield chunk

    def _view(self, name: str, data: bytes) -> Image:
        try:
            image = decode(data, self._decoding)
        except TooManyPixels:
            most = self._decoding.max_pixels
            raise Refusal(413, "pixels", f"{name} must have at most {most:,} pixels.") from None
        except UndecodableImage as error:
            raise Refusal(400, "unreadable", f"{name} must be an image. Received: {error}.") from None
        return evaluation_view(image, self._model.input_view)

    def _compute(self, images: np.ndarray) -> np.ndarray:
        started = time.monotonic()
        try:
            features = self._model.features(images)
        except Exception as error:
            log.error(f"{len(images)} images could not be computed: {error}")
            self._change_status("failing")
            raise Refusal(500, "model", "The model failed; see the server's log.") from error
        self._change_status("ready")
        self.metrics.batches.observe(len(images))
        self.metrics.images.inc(len(images))
        self.metrics.model_seconds.observe(time.monotonic() - started)
        return features

    def _change_status(self, status: str) -> None:
        if self.status != "stopping":
            self.status = status

    # === Errors ===

    async def _refuse(self, request: Request, error: Refusal) -> Response:
        self.metrics.errors.labels(error.reason).inc()
        return _json({"error": str(error)}, error.status, error.headers)

    async def _not_served(self, request: Request, error: HTTPException) -> Response:
        paths = ", ".join(self._paths)
        sentence = f"{request.method} {request.url.path}: {error.detail}. Paths: {paths}."
        if request.url.path in ("/similar", "/") and "/similar" not in self._paths:
            sentence += " The search needs `swav-tf serve --features` or `--index`."
        headers = dict(error.headers or {})
        return await self._refuse(request, Refusal(error.status_code, "path", sentence, headers))

    async def _fail(self, request: Request, error: Exception) -> Response:
        sentence = "The server failed; see its log."
        return await self._refuse(request, Refusal(500, "internal", sentence))


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status, headers, "application/json")
