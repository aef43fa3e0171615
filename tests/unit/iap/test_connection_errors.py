"""What a failed connection means, by the errors of real sockets."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from mlflow_iap_callbacks import IAPCredentials, IAPCredentialsError
from mlflow_iap_callbacks.iap.auth import IAPAuth
from mlflow_iap_callbacks.iap.connection_errors import is_certificate_invalid, was_never_sent
from mlflow_iap_callbacks.iap.retry_policy import RetryPolicy
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.local.certificates import tls_context

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


@contextmanager
def _server(handle: Callable[[socket.socket, int], None]) -> Iterator[int]:
    """A port on which ``handle`` serves each connection, given its number."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        number = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            number += 1
            try:
                handle(connection, number)
            except OSError:
                pass
            finally:
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """TLS of this machine, and the certificate that makes clients trust it."""
    return tls_context(tmp_path_factory.mktemp("tls"), ("localhost",))


def _answer(context: ssl.SSLContext, breaks: int) -> Callable[[socket.socket, int], None]:
    """Serves requests by TLS after a number of connections that end during the handshake."""

    def handle(connection: socket.socket, number: int) -> None:
        connection.settimeout(10)
        if number <= breaks:
            connection.recv(4096)
            return
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(65536)
            secure.sendall(_OK)

    return handle


def _error(call: Callable[[], object]) -> requests.RequestException:
    with pytest.raises(requests.RequestException) as caught:
        call()
    return caught.value


def test_a_post_is_sent_again_after_a_broken_tls_handshake(
    tls: tuple[ssl.SSLContext, Path],
) -> None:
    with _server(_answer(tls[0], breaks=1)) as port:
        auth = IAPAuth(f"https://localhost:{port}")
        with auth.session() as session:
            url = f"{auth.origin}/model-versions/create"
            assert session.post(url, verify=str(tls[1]), timeout=10).status_code == 200


def test_a_certificate_that_does_not_verify_is_final(
    tls: tuple[ssl.SSLContext, Path],
) -> None:
    with _server(_answer(tls[0], breaks=0)) as port:
        auth = IAPAuth(f"https://localhost:{port}", retry=RetryPolicy(deadline=3600.0))
        with auth.session() as session:
            error = _error(lambda: session.get(auth.origin, timeout=10))
    assert isinstance(error, requests.exceptions.SSLError)
    assert is_certificate_invalid(error)


def test_a_connection_that_breaks_after_the_handshake_may_have_sent_the_request(
    tls: tuple[ssl.SSLContext, Path],
) -> None:
    def handle(connection: socket.socket, _: int) -> None:
        with tls[0].wrap_socket(connection, server_side=True) as secure:
            secure.recv(65536)

    with _server(handle) as port:
        url = f"https://localhost:{port}"
        error = _error(lambda: requests.post(url, verify=str(tls[1]), timeout=10))
    assert not was_never_sent(error)
    assert not is_certificate_invalid(error)


def test_a_closed_port_received_nothing() -> None:
    with _server(lambda *_: None) as port:
        pass
    assert was_never_sent(_error(lambda: requests.post(f"http://127.0.0.1:{port}")))


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 503 Busy\r\n\r\n", b""])
def test_nothing_was_sent_if_the_proxy_is_away_or_lets_nobody_through(
    answer: bytes | None,
) -> None:
    def handle(connection: socket.socket, _: int) -> None:
        connection.recv(4096)
        connection.sendall(answer or b"")

    with _server(handle) as port:
        proxies = {"https": f"http://127.0.0.1:{port}"}
        if answer is not None:
            error = _error(lambda: requests.post("https://mlflow.test", proxies=proxies))
    if answer is None:
        error = _error(lambda: requests.post("https://mlflow.test", proxies=proxies))
    assert was_never_sent(error)


def test_a_broken_handshake_with_google_is_transient_and_a_bad_certificate_is_not(
    tls: tuple[ssl.SSLContext, Path], echo: LocalCloud, tmp_path: Path
) -> None:
    for breaks, is_transient in ((99, True), (0, False)):
        with _server(_answer(tls[0], breaks)) as port:
            text = echo.key_file().read_text()
            file = tmp_path / "key.json"
            file.write_text(text.replace(echo.google_url, f"https://localhost:{port}"))
            with pytest.raises(IAPCredentialsError) as caught:
                IAPCredentials("1-a", key_file=file).token()
        assert caught.value.transient is is_transient
