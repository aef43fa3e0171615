"""A local proxy that passes requests on to one server, with its token and with retries."""

from __future__ import annotations

import asyncio
import hmac
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import requests
import urllib3
from aiohttp import web

from ..errors import IAPError
from .auth import IAPAuth

_CHUNK_BYTES = 65_536
_MOST_IN_MEMORY_BYTES = 1_000_000
_SECONDS_WITHOUT_DATA = 120.0  # MLflow's own time limit for a response
_MOST_REQUESTS = 64  # at once; the others wait
_NO_REFERRER = {"Referrer-Policy": "no-referrer"}  # the URL contains the secret
# Headers that concern only one connection, or only the browser and this proxy. The server would
# reject requests from another origin, and all programs of this machine would share the cookies.
_NOT_PASSED_ON = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "expect", "host", "proxy-authorization", "proxy-authenticate"),
        *("cookie", "set-cookie", "origin", "referer"),
    }
)


class IAPProxy:
    """Passes the requests of local programs on to one server.

    It is for programs that cannot get a token themselves: curl, R, Java, a browser. A request is
    accepted if its path begins with the secret, its host is a local name of this machine, and it
    does not come from a page of another site.

    Args:
        auth: the server, its credentials and retries.
        secret: the first part of each path. None if only this user can connect, as to a Unix
            socket.

    Raises:
        IAPConfigurationError: MLflow's variables for TLS are contradictory, or name a missing file.
    """

    def __init__(self, auth: IAPAuth, secret: str | None) -> None:
        self._auth = auth
        self._prefix = "" if secret is None else f"/{secret}"
        self._session = auth.session()
        self._session.headers.clear()
        self._settings = self._session.merge_environment_settings(
            auth.origin, {}, stream=True, verify=None, cert=None
        )
        self._threads = ThreadPoolExecutor(_MOST_REQUESTS, "mlflow-iap-proxy")

    def application(self) -> web.Application:
        """Return the application to serve. At its end, it closes its connections to the server."""
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._pass_on)
        application.on_cleanup.append(self._close)
        return application

    async def _close(self, _: web.Application) -> None:
        self._session.close()
        self._threads.shutdown(wait=False)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        path = self._path(request)
        if path is None:
            return _error(404, "Use the URL that `mlflow-iap proxy` has printed.")
        if not self._is_local(request):
            return _error(403, "The request comes from a page of another site, so it is not sent.")
        if path[:1] != "/":
            path = f"/{path}"
            if self._prefix and request.method == "GET":
                # MLflow's page loads its parts from paths relative to its own.
                location = {"Location": self._prefix + path}
                return web.Response(status=307, headers={**location, **_NO_REFERRER})
        try:
            response = await self._in_thread(partial(self._request, request, path, _body(request)))
        except IAPError as error:
            return _error(502, error.message)
        except requests.RequestException as error:
            return _error(502, f"{self._auth.origin} cannot be reached: {error}")
        with response:
            return await self._pass_back(request, response)

    def _path(self, request: web.Request) -> str | None:
        """Return the path on the server, with its query; None if the secret is missing."""
        given, length = request.raw_path, len(self._prefix)
        is_allowed = hmac.compare_digest(given[:length].encode(), self._prefix.encode())
        rest = given[length:]
        if not is_allowed or rest[:1] not in ("/", "?", ""):
            return None
        return rest

    def _is_local(self, request: web.Request) -> bool:
        if not self._prefix:
            return True  # no page can make a browser connect to a Unix socket
        name = request.headers.get("Host", "")
        return (
            name in {f"{host}:{_local_port(request)}" for host in ("127.0.0.1", "localhost")}
            and request.headers.get("Origin", f"http://{name}") == f"http://{name}"
            and request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
        )

    def _request(self, request: web.Request, path: str, body: _Body | None) -> requests.Response:
        url = self._auth.origin + path
        prepared: Any = self._session.prepare_request(
            requests.Request(
                request.method, url, headers=_passed_on(request.headers.items()), data=body
            )
        )
        prepared._body_position = 0  # where another attempt begins
        # The session itself would read the bodies of redirects, and keep cookies.
        adapter: Any = self._session.get_adapter(url)
        response: requests.Response = adapter.send(
            prepared, timeout=_SECONDS_WITHOUT_DATA, **self._settings
        )
        return response

    async def _pass_back(
        self, request: web.Request, response: requests.Response
    ) -> web.StreamResponse:
        headers = _passed_on(response.raw.headers.items())
        if headers.get("Location", "").startswith(f"{self._auth.origin}/"):
            headers["Location"] = self._prefix + headers["Location"][len(self._auth.origin) :]
        headers |= _NO_REFERRER
        back = web.StreamResponse(status=response.status_code, headers=headers)
        await back.prepare(request)
        chunks: Iterator[bytes] = response.raw.stream(_CHUNK_BYTES, decode_content=False)
        try:
            while chunk := await self._in_thread(lambda: next(chunks, b"")):
                await back.write(chunk)
        except (urllib3.exceptions.HTTPError, OSError):
            # Without the end of the body, the program notices that it is incomplete.
            if request.transport is not None:
                request.transport.abort()
            return back
        await back.write_eof()
        return back

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


class _ProgramGone(Exception):
    """The program closed its connection before the body of its request ended."""


class _Body:
    """The body of a program's request: read as it arrives, and kept for another attempt.

    Args:
        request: the request.
        loop: the event loop that receives it.
    """

    def __init__(self, request: web.Request, loop: asyncio.AbstractEventLoop) -> None:
        self.len = request.content_length  # requests reads this; None if the length is unknown
        self._content = request.content
        self._loop = loop
        self._kept = tempfile.SpooledTemporaryFile(_MOST_IN_MEMORY_BYTES)  # noqa: SIM115

    def read(self, _: int = -1) -> bytes:
        """Return what was kept after the current position, or else what arrives next."""
        if kept := self._kept.read(_CHUNK_BYTES):
            return kept
        arriving = asyncio.run_coroutine_threadsafe(self._content.readany(), self._loop)
        try:
            arrived = arriving.result()
        except Exception as error:
            raise _ProgramGone from error
        self._kept.write(arrived)
        return arrived

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.read, b"")

    def seek(self, position: int) -> int:
        return self._kept.seek(position)


def _body(request: web.Request) -> _Body | None:
    return _Body(request, asyncio.get_running_loop()) if request.body_exists else None


def _passed_on(headers: Any) -> dict[str, str]:
    return {
        name: value
        for name, value in headers
        if name.lower() not in _NOT_PASSED_ON and not name.lower().startswith("sec-")
    }


def _local_port(request: web.Request) -> int:
    assert request.transport is not None  # noqa: S101
    port: int = request.transport.get_extra_info("sockname")[1]
    return port


def _error(status: int, message: str) -> web.Response:
    """Return an error in the format that MLflow's clients expect."""
    text = json.dumps({"error_code": "TEMPORARILY_UNAVAILABLE", "message": message})
    return web.Response(status=status, text=text, content_type="application/json")
