"""A listening socket that can close the connections that came in through it."""

from __future__ import annotations

import socket
import weakref
from typing import Any


class Listener(socket.socket):
    """Takes the place of `listener` and remembers what it accepts.

    A connection accepted while its server closes is known to no server yet, and an event loop that
    ends leaves such a connection open until its transport is garbage: the client would wait.
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
        """Close what is still open; call it when the event loop has ended."""
        for connection in self._accepted:
            connection.close()
