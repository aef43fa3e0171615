"""uvicorn's protocol for HTTP/1, with a limit for what it keeps of an unfinished request."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# The gate refuses half of it, with a better message, once the headers are complete.
MAX_UNREAD_BYTES = 128 * 1024


class BoundedHeadersProtocol(HttpToolsProtocol):
    """Closes a connection with too many bytes that complete neither headers nor a part of a body.

    httptools keeps them all in memory: a URL, headers, and the trailers of a chunked body.
    """

    _unread = 0

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread <= MAX_UNREAD_BYTES or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response("The headers of this request are too large.")
        else:
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()
