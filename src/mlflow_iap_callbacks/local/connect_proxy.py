"""A CONNECT proxy that redirects Google's host names to this machine and rejects all others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

# The host names that the TLS server behind the proxy has a certificate for.
GOOGLE_NAMES = (
    "googleapis.com",
    "*.googleapis.com",
    "*.mtls.googleapis.com",
    "accounts.google.com",
    "www.gstatic.com",
)
_MAX_HEAD_BYTES = 64 * 1024


class ConnectProxy:
    """Handles `CONNECT host:443` for Google's host names by connecting to a local port.

    Args:
        target_port: port of the TLS server on 127.0.0.1.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._connections: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self, listener: socket.socket) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, sock=listener, limit=_MAX_HEAD_BYTES)
        try:
            yield
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        self._connections.add(task)
        try:
            # A client may disconnect at any moment; then nobody waits for a response. The task is
            # cancelled only when the proxy stops, which Python 3.11 would log as an error.
            with contextlib.suppress(
                OSError,
                asyncio.IncompleteReadError,
                asyncio.LimitOverrunError,
                asyncio.CancelledError,
            ):
                await self._tunnel(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = [*head.decode("latin-1").split(" ", 2), "", ""][:3]
        if method != "CONNECT" or not _is_google(target):
            writer.write(
                b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            await writer.drain()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        finally:
            inner_writer.close()


def _is_google(target: str) -> bool:
    host, _, port = target.lower().rpartition(":")
    return port == "443" and any(
        host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in GOOGLE_NAMES
    )


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(64 * 1024):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
