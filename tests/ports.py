"""TCP ports for servers that tests start."""

import socket

_held: list[socket.socket] = []


def reserve_port() -> int:
    """Return a port that the system gives to no other socket while this process runs; a server may listen at it."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: they can bind it, too
    holder.bind(("", 0))
    _held.append(holder)
    return int(holder.getsockname()[1])
