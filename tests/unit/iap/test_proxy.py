"""The local proxy that gives other programs access to the server."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from aiohttp import web

from bare_server import BareServer
from mlflow_iap_callbacks.iap.auth import IAPAuth
from mlflow_iap_callbacks.iap.proxy import IAPProxy
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.local.certificates import tls_context

_SECRET = "a-secret"
_DEADLINE = 20.0
Serve = Callable[[web.Application], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves applications on this machine until the test's end, and returns their origins."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait_for(coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(_DEADLINE)  # type: ignore[arg-type]

    with ExitStack() as stack:
        stack.callback(thread.join)
        stack.callback(loop.call_soon_threadsafe, loop.stop)

        def serve(application: web.Application) -> str:
            listener = socket.create_server(("127.0.0.1", 0))
            runner = web.AppRunner(application, shutdown_timeout=0.1)
            wait_for(runner.setup())
            stack.callback(lambda: wait_for(runner.cleanup()))
            wait_for(web.SockSite(runner, listener).start())
            return f"http://127.0.0.1:{listener.getsockname()[1]}"

        yield serve


@pytest.fixture
def proxy(echo: LocalCloud, serve: Serve) -> str:
    """The URL of a proxy in front of IAP, with its secret."""
    return f"{serve(IAPProxy(IAPAuth(echo.url), _SECRET).application())}/{_SECRET}"


def _in_front_of(upstream: web.Application, serve: Serve) -> str:
    return f"{serve(IAPProxy(IAPAuth(serve(upstream)), _SECRET).application())}/{_SECRET}"


def _application(handler: Callable[[web.Request], object]) -> web.Application:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)  # type: ignore[arg-type]
    return application


# --- what reaches the server -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("", "/"),
        ("/", "/"),
        ("/api/2.0/x?a=b%2Fc&d=%20", "/api/2.0/x?a=b%2Fc&d=%20"),
        ("?a=b", "/?a=b"),
        ("/x//evil.example/y", "/x//evil.example/y"),
    ],
)
def test_a_request_arrives_with_its_path_and_a_token(
    proxy: str, echo: LocalCloud, path: str, there: str
) -> None:
    arrived = requests.get(proxy + path, timeout=_DEADLINE).json()
    assert (arrived["method"], arrived["path"]) == ("GET", there)
    assert [seen.status for seen in echo.requests] == [302, 200]
    assert len(echo.tokens) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_body_arrives_complete_although_iap_itself_responds_to_the_first_attempt(
    proxy: str, echo: LocalCloud, method: str, is_chunked: bool
) -> None:
    body = b"x" * 3_000_000  # more than is kept in memory
    data = iter([body[:1_000_000], body[1_000_000:]]) if is_chunked else body
    arrived = requests.request(method, f"{proxy}/x", data=data, timeout=_DEADLINE).json()
    assert (arrived["method"], arrived["body_bytes"]) == (method, len(body))
    assert [seen.status for seen in echo.requests][-1] == 200
    assert len(echo.requests) > 1


def test_headers_for_the_browser_and_the_connection_are_not_passed_on(proxy: str) -> None:
    own = urlsplit(proxy).netloc
    given = {"Cookie": "a=b", "Origin": f"http://{own}", "Referer": proxy, "X-Own": "1"}
    given |= {"Sec-Fetch-Site": "same-origin", "Accept-Encoding": "br", "User-Agent": "R"}
    headers = requests.get(proxy, headers=given, timeout=_DEADLINE).json()["headers"]
    assert {"cookie", "origin", "referer", "sec-fetch-site"} & headers.keys() == set()
    assert (headers["x-own"], headers["accept-encoding"], headers["user-agent"]) == ("1", "br", "R")
    assert headers["host"] != own


def test_basic_authentication_is_left_to_mlflow(proxy: str) -> None:
    headers = requests.get(proxy, auth=("ada", "pw"), timeout=_DEADLINE).json()["headers"]
    assert headers["authorization"].startswith("Basic ")


def test_a_request_to_a_busy_server_is_retried(proxy: str, echo: LocalCloud) -> None:
    echo.fault("answer", status=503)
    assert requests.get(proxy, timeout=_DEADLINE).status_code == 200


def test_a_server_that_cannot_be_reached_is_an_error_that_names_it(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        origin = f"http://127.0.0.1:{closed.getsockname()[1]}"
    auth = IAPAuth(origin)
    auth.retry = type(auth.retry)(max_attempts=1)
    url = serve(IAPProxy(auth, _SECRET).application())
    response = requests.get(f"{url}/{_SECRET}/", timeout=_DEADLINE)
    assert response.status_code == 502
    assert f"{origin} cannot be reached" in response.json()["message"]


def test_credentials_that_fail_are_an_error_that_says_why(proxy: str, echo: LocalCloud) -> None:
    echo.fault("answer", where="google", status=400, times=0)
    response = requests.get(proxy, timeout=_DEADLINE)
    assert response.status_code == 502
    assert "token" in response.json()["message"]


# --- streaming -------------------------------------------------------------------------------


def test_a_body_is_passed_on_while_it_arrives(serve: Serve) -> None:
    has_begun = threading.Event()

    async def count(request: web.Request) -> web.Response:
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
            has_begun.set()
        return web.json_response(size)

    def data() -> Iterator[bytes]:
        yield b"first"
        assert has_begun.wait(_DEADLINE)
        yield b"second"

    url = _in_front_of(_application(count), serve)
    assert requests.put(url, data=data(), timeout=_DEADLINE).json() == 11


def test_a_response_is_passed_back_while_it_arrives(serve: Serve) -> None:
    is_read = threading.Event()

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        assert await asyncio.to_thread(is_read.wait, _DEADLINE)
        await response.write(b"second")
        return response

    url = _in_front_of(_application(drip), serve)
    with requests.get(url, stream=True, timeout=_DEADLINE) as response:
        chunks = response.iter_content(None)
        assert next(chunks) == b"first"
        is_read.set()
        assert b"".join(chunks) == b"second"


def test_an_incomplete_response_is_passed_back_as_an_incomplete_one(serve: Serve) -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"part")
        assert request.transport is not None
        request.transport.abort()
        return response

    url = _in_front_of(_application(break_off), serve)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(url, timeout=_DEADLINE)


def test_compressed_responses_stay_as_they_are(serve: Serve) -> None:
    async def compressed(_: web.Request) -> web.Response:
        response = web.Response(text="x" * 1000)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    response = requests.get(_in_front_of(_application(compressed), serve), timeout=_DEADLINE)
    assert response.headers["Content-Encoding"] == "gzip"
    assert response.text == "x" * 1000


def test_a_head_request_gets_the_headers_of_a_get_request(serve: Serve) -> None:
    async def text(_: web.Request) -> web.Response:
        return web.Response(text="x" * 1000)

    response = requests.head(_in_front_of(_application(text), serve), timeout=_DEADLINE)
    assert (response.headers["Content-Length"], response.content) == ("1000", b"")


def test_a_redirect_on_the_server_leads_back_to_the_proxy(serve: Serve) -> None:
    async def redirect(request: web.Request) -> web.Response:
        if request.path == "/to":
            return web.Response(text="there")
        raise web.HTTPFound(f"http://{request.host}/to")

    url = _in_front_of(_application(redirect), serve)
    response = requests.get(f"{url}/from", timeout=_DEADLINE)
    assert (response.text, response.url) == ("there", f"{url}/to")


def test_cookies_of_the_server_reach_neither_the_program_nor_the_next_request(
    serve: Serve,
) -> None:
    async def bake(request: web.Request) -> web.Response:
        response = web.json_response(dict(request.cookies))
        response.set_cookie("a", "b")
        return response

    url = _in_front_of(_application(bake), serve)
    for _ in range(2):
        response = requests.get(url, timeout=_DEADLINE)
        assert (response.json(), response.headers.get("Set-Cookie")) == ({}, None)


def test_mlflows_variables_for_tls_are_used(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, authority = tls_context(tmp_path, ("localhost",))
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(authority))
    with BareServer(context) as server:
        auth = IAPAuth(server.url.replace("127.0.0.1", "localhost"))
        url = f"{serve(IAPProxy(auth, _SECRET).application())}/{_SECRET}"
        assert requests.get(url, timeout=_DEADLINE).text == "hello"


# --- who may use it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["", "/", "/api", "/a-secre", "/a-secretx", "/a-secret@evil.example/", "/%61-secret/"]
)
def test_without_the_secret_nothing_is_sent(proxy: str, echo: LocalCloud, path: str) -> None:
    parts = urlsplit(proxy)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_DEADLINE)
    connection.request("GET", path or "*")
    assert connection.getresponse().status in (400, 404)
    connection.close()
    assert list(echo.requests) == []


def test_a_request_that_names_a_whole_url_is_not_sent(proxy: str, echo: LocalCloud) -> None:
    connection = http.client.HTTPConnection(urlsplit(proxy).netloc, timeout=_DEADLINE)
    connection.request("GET", f"http://evil.example/{_SECRET}/")
    assert connection.getresponse().status in (403, 404)
    connection.close()
    assert list(echo.requests) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_cannot_use_it(
    proxy: str, echo: LocalCloud, headers: dict[str, str]
) -> None:
    response = requests.post(proxy, headers=headers, json={}, timeout=_DEADLINE)
    assert response.status_code == 403
    assert list(echo.requests) == []


def test_localhost_is_accepted_as_a_name_of_this_machine(proxy: str) -> None:
    headers = {"Host": f"localhost:{urlsplit(proxy).port}"}
    assert requests.get(proxy, headers=headers, timeout=_DEADLINE).status_code == 200


def test_no_page_passes_the_secret_to_another_site(proxy: str) -> None:
    for path in ("", "/"):
        response = requests.get(proxy + path, allow_redirects=False, timeout=_DEADLINE)
        assert response.headers["Referrer-Policy"] == "no-referrer"
