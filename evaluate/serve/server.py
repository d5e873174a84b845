"""Run the service until a signal stops it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from evaluate.serve.service import Service
from swav_tf.plumbing.errors import UsageError

LAST_CALL_SECONDS: Final = 0.5  # for requests that are already on their way on open connections
KEEP_SECONDS: Final = 75  # for an idle connection: longer than proxies keep theirs
STOP_SECONDS: Final = 60  # after which requests of silent clients are dropped


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not accept connections yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:  # the latter of a name such as a..b
        raise UsageError(
            f"--host and --port must be a free address of this machine. Received: {host} and {port}: "
            f"{getattr(error, 'strerror', None) or error}."
        ) from error
    return bound


def serve(service: Service, bound: socket.socket, on_ready: Callable[[], None]) -> None:
    """Answer requests on the socket from `listen` until SIGTERM or SIGINT; then finish what was accepted and close.

    `on_ready` is called when connections are accepted.
    """
    config = uvicorn.Config(
        service,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    try:
        asyncio.run(_serve(uvicorn.Server(config), service, bound, on_ready))
    finally:
        service.close()


async def _serve(
    server: uvicorn.Server, service: Service, bound: socket.socket, on_ready: Callable[[], None]
) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        service.stop()
        for listener in server.servers:
            listener.close()
        # A connection that is idle now may have a request on its way: uvicorn would close it unread.
        loop.call_later(LAST_CALL_SECONDS, setattr, server, "should_exit", True)

    serving = asyncio.create_task(server.serve([bound]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if server.started:
        on_ready()
    await serving
