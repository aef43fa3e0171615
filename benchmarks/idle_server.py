"""A server that does nothing, in a process of its own, to measure clients."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from threading import Thread

RUN_ID = "0" * 32
_RUN = b'{"run":{"info":{"run_id":"%s","experiment_id":"0","lifecycle_stage":"active"},"data":{}}}'


@dataclass(frozen=True)
class IdleServer:
    """The server, as its clients see it."""

    url: str
    _pipe: Connection

    def points(self) -> int:
        """Return the number of points that it received."""
        self._pipe.send("points")
        count: int = self._pipe.recv()
        return count


class _Handler(BaseHTTPRequestHandler):
    """Answers that every run exists and that everything was logged."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for each response
    points = 0

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_batch = self.path.endswith("log-batch")
        if is_batch:
            _Handler.points += content.count(b'"key"')
        body = b"{}" if is_batch else _RUN % RUN_ID.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


def _serve(pipe: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_port)
    while pipe.recv():
        pipe.send(_Handler.points)


@contextmanager
def idle_server() -> Iterator[IdleServer]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,))
    process.start()
    try:
        yield IdleServer(f"http://127.0.0.1:{ours.recv()}", ours)
    finally:
        process.kill()
        process.join()
