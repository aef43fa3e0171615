"""Closes TCP connections: resets them, cuts them off, or closes those left at the end."""

from __future__ import annotations

import asyncio
import socket
import struct
import weakref
from typing import Any

from aiohttp import web


def reset(request: web.Request) -> web.Response:
    """Reset the client's connection (TCP RST); the returned response is never sent."""
    if (transport := request.transport) is not None:
        connection = transport.get_extra_info("socket")
        # With a linger time of zero, closing resets; otherwise the client would see a clean EOF.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


async def cut(request: web.Request) -> None:
    """Send what has been written so far, then close the client's connection."""
    if (transport := request.transport) is not None:
        while transport.get_write_buffer_size() and not transport.is_closing():
            await asyncio.sleep(0.005)
        transport.abort()


class Listener(socket.socket):
    """A listening socket that can close every connection it has accepted.

    A connection that is accepted while its server shuts down belongs to no server yet. At the end
    of the event loop, it would stay open until its transport is garbage collected, and the client
    would hang.

    Args:
        listener: the socket that this one replaces.
    """

    __slots__ = ("_accepted",)

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(fileno=listener.detach())
        self._accepted: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        self._accepted.add(connection)
        return connection, address

    def close_accepted(self) -> None:
        """Close what is still open. Call it when the event loop has ended."""
        for connection in self._accepted:
            connection.close()
