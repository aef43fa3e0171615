"""Ending a client's connection in the ways in which networks end connections."""

from __future__ import annotations

import asyncio
import socket
import struct

from aiohttp import web


def reset(request: web.Request) -> web.Response:
    """Reset the connection at once (TCP RST) and return a response for nobody."""
    if (transport := request.transport) is not None:
        connection = transport.get_extra_info("socket")
        # A linger time of zero turns the close into a reset; without it the client would read an
        # orderly end of the stream.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


async def cut(request: web.Request) -> None:
    """End the connection after what has been written so far has left this process."""
    if (transport := request.transport) is not None:
        while transport.get_write_buffer_size() and not transport.is_closing():
            await asyncio.sleep(0.005)
        transport.abort()
