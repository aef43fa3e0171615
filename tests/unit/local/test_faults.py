"""The faults of the local Google Cloud, its request log, and its start and stop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from google.auth import jwt
from google.auth.transport.requests import Request
from google.oauth2 import service_account

from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.local.faults import FaultKind


@pytest.fixture
def cloud() -> Iterator[LocalCloud]:
    with LocalCloud() as running:
        yield running


def make_token(cloud: LocalCloud) -> str:
    credentials = service_account.IDTokenCredentials.from_service_account_file(
        cloud.key_file(), target_audience=cloud.client_id
    )
    credentials.refresh(Request())
    return str(credentials.token)


@pytest.fixture
def session(cloud: LocalCloud) -> Iterator[requests.Session]:
    with requests.Session() as authorized:
        authorized.headers["Authorization"] = f"Bearer {make_token(cloud)}"
        cloud.forget()
        yield authorized


def statuses(
    cloud: LocalCloud, session: requests.Session, count: int, path: str = "/"
) -> list[int]:
    return [session.get(cloud.url + path, timeout=10).status_code for _ in range(count)]


@pytest.mark.parametrize(
    ("status", "from_iap", "text"),
    [
        (401, True, "OpenID Connect token expired: JWT has expired"),
        (403, True, "MLflow: Access denied. For user trainer@"),
        (429, True, "Quota exceeded"),
        (502, True, "Empty Google Account OAuth client ID(s)/secret(s)."),
        (401, False, "You are not authenticated."),
        (403, False, "Permission denied"),
        (429, False, "Rate exceeded."),
        (500, False, "could not complete your request"),
        (502, False, "Please try again in 30 seconds"),
        (503, False, "Please try again in 30 seconds"),
    ],
)
def test_answer_responds_like_the_real_service_with_that_status(
    cloud: LocalCloud, session: requests.Session, status: int, from_iap: bool, text: str
) -> None:
    """The body is the real one, with IAP's marker only if it is from IAP."""
    cloud.fault("answer", status=status, from_iap=from_iap, retry_after=2.0)
    answer = session.get(cloud.url, timeout=10)
    assert (answer.status_code, answer.headers["Retry-After"]) == (status, "2")
    assert text in answer.text
    assert ("X-Goog-IAP-Generated-Response" in answer.headers) == from_iap
    seen = cloud.requests[-1]
    assert (seen.status, seen.iap_answer, seen.reached_upstream) == (status, from_iap, False)
    assert session.get(cloud.url, timeout=10).status_code == 200


def test_answer_accepts_a_body_and_affects_requests_without_credentials(cloud: LocalCloud) -> None:
    """As with a misconfigured OAuth client, which affects everybody."""
    sentence = "There was a problem with your request. Error code 11"
    cloud.fault("answer", status=401, body=sentence, from_iap=True)
    answer = requests.get(cloud.url, allow_redirects=False, timeout=10)
    assert (answer.status_code, answer.text) == (401, sentence)


def test_answer_after_replaces_the_applications_response(
    cloud: LocalCloud, session: requests.Session
) -> None:
    """The application is called, and the client sees another response."""
    cloud.fault("answer_after", status=503)
    assert session.post(cloud.url, b"work", timeout=10).status_code == 503
    seen = cloud.requests[-1]
    assert (seen.reached_upstream, seen.body_bytes, seen.iap_answer) == (True, 4, False)


@pytest.mark.parametrize(("kind", "worked"), [("reset_before", False), ("reset_after", True)])
def test_reset_breaks_the_connection_without_a_response(
    cloud: LocalCloud, session: requests.Session, kind: FaultKind, worked: bool
) -> None:
    """The client's connection breaks, before or after the application is called."""
    cloud.fault(kind)
    with pytest.raises(requests.ConnectionError, match="Connection aborted"):
        session.post(cloud.url, b"work", timeout=10)
    assert (cloud.requests[-1].status, cloud.requests[-1].reached_upstream) == (0, worked)
    assert session.get(cloud.url, timeout=10).status_code == 200


@pytest.mark.parametrize("size", [10, 5_000_000, 30_000_000])
def test_reject_midway_lets_the_client_read_the_expiry_in_the_middle_of_an_upload(
    cloud: LocalCloud, session: requests.Session, size: int
) -> None:
    """The 401 is readable although half of the body was not read, and the token is revoked."""
    cloud.fault("reject_midway")
    assert statuses(cloud, session, 1) == [200]
    answer = session.put(cloud.url, b"x" * size, timeout=30)
    assert (answer.status_code, answer.text) == (
        401,
        "OpenID Connect token expired: JWT has expired",
    )
    assert answer.headers["Connection"] == "close"
    seen = cloud.requests[-1]
    assert size // 2 <= seen.body_bytes <= size // 2 + 1_000_000
    assert not seen.reached_upstream
    assert statuses(cloud, session, 1) == [401]
    session.headers["Authorization"] = f"Bearer {make_token(cloud)}"
    assert session.put(cloud.url, b"x" * size, timeout=30).json()["body_bytes"] == size


def test_reject_midway_leaves_time_to_sign_another_jwt(cloud: LocalCloud) -> None:
    """A JWT signed right after the 401 differs from the revoked one and passes."""
    credentials = jwt.Credentials.from_service_account_file(
        str(cloud.key_file()), audience=f"{cloud.url}/*"
    )
    cloud.fault("reject_midway")
    for expected in (401, 200):
        credentials.refresh(Request())
        headers = {"Authorization": f"Bearer {credentials.token.decode()}"}
        assert requests.post(cloud.url, b"x", headers=headers, timeout=10).status_code == expected


def test_reset_midway_ends_a_download_in_its_middle(
    cloud: LocalCloud, session: requests.Session
) -> None:
    """The client gets the headers and half of the body, then the connection ends."""
    cloud.fault("reset_midway")
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        session.get(cloud.url, timeout=10)
    assert (cloud.requests[-1].status, cloud.requests[-1].reached_upstream) == (0, True)


def test_path_method_skip_and_times_choose_the_affected_requests(
    cloud: LocalCloud, session: requests.Session
) -> None:
    """With times=0 a fault hits all requests, until clear_faults."""
    cloud.fault("answer", path="/api", method="GET", skip=1, times=2)
    assert statuses(cloud, session, 2) == [200, 200]
    assert session.post(f"{cloud.url}/api", timeout=10).status_code == 200
    assert statuses(cloud, session, 4, "/api/runs?x=1") == [200, 503, 503, 200]
    cloud.fault("answer", times=0)
    assert statuses(cloud, session, 5) == [503] * 5
    cloud.clear_faults()
    assert statuses(cloud, session, 1) == [200]


def test_fault_rate_affects_a_share_of_the_requests_and_the_same_ones_for_the_same_seed(
    cloud: LocalCloud, session: requests.Session
) -> None:
    """The same seed hits the same requests."""
    rounds = []
    for _ in range(2):
        cloud.fault_rate("answer", 0.3, seed=7, status=500)
        rounds.append(statuses(cloud, session, 60))
        cloud.clear_faults()
    assert rounds[0] == rounds[1]
    assert 8 <= rounds[0].count(500) <= 28


def test_faults_affect_the_google_endpoints_too(cloud: LocalCloud) -> None:
    """The token endpoint responds with an error, or resets the connection."""
    url = f"{cloud.google_url}/token"
    cloud.fault("answer", where="google", path="/token", retry_after=1.5)
    answer = requests.post(url, timeout=10)
    assert (answer.status_code, answer.json()["error"]["status"]) == (503, "UNAVAILABLE")
    assert answer.headers["Retry-After"] == "1.5"
    for kind in ("reset_before", "reset_after"):
        cloud.fault(kind, where="google")
        with pytest.raises(requests.ConnectionError, match="Connection aborted"):
            requests.post(url, timeout=10)
    cloud.fault("answer_after", where="google", status=500)
    assert requests.post(url, timeout=10).status_code == 500
    assert [seen.status for seen in cloud.google_requests] == [503, 0, 0, 500]


@pytest.mark.parametrize(
    ("kind", "where"), [("explode", "iap"), ("reset_midway", "google"), ("answer", "moon")]
)
def test_an_impossible_fault_is_rejected(cloud: LocalCloud, kind: Any, where: Any) -> None:
    """An unknown kind or place raises immediately, and the error names the known ones."""
    with pytest.raises(ValueError, match="give one of"):
        cloud.fault(kind, where=where)


def test_faults_may_be_injected_while_requests_are_in_progress(
    cloud: LocalCloud, session: requests.Session
) -> None:
    """Each of many faults injected from another thread hits exactly once."""
    stop = threading.Event()

    def ask() -> list[int]:
        answers = []
        with requests.Session() as own:
            own.headers.update(session.headers)
            while not stop.is_set():
                answers.append(own.get(cloud.url, timeout=10).status_code)
        return answers

    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(ask) for _ in range(4)]
        deadline = time.monotonic() + 20
        for injected in range(1, 21):
            cloud.fault("answer")
            while [s.status for s in cloud.requests].count(503) < injected:
                assert not stop.wait(0.002)
                assert time.monotonic() < deadline
        stop.set()
        answers = [status for future in futures for status in future.result()]
    assert answers.count(503) == 20
    assert set(answers) == {200, 503}


def test_delay_is_added_to_each_request(cloud: LocalCloud, session: requests.Session) -> None:
    """Each of several requests takes at least the delay that is set."""
    statuses(cloud, session, 1)
    cloud.delay = 0.2
    start = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: requests.get(cloud.url, headers=session.headers), range(8)))
    assert time.monotonic() - start >= 0.2


def test_the_request_log_contains_no_secrets(cloud: LocalCloud) -> None:
    """Requests and tokens are logged, without the text of tokens, cookies and passwords."""
    token = make_token(cloud)
    headers = {"Proxy-Authorization": f"Bearer {token}", "Authorization": "Basic c2VjcmV0"}
    requests.post(f"{cloud.url}/x?y=1", b"abc", headers=headers, cookies={"s": "v1"}, timeout=10)
    (seen,) = cloud.requests
    assert (seen.method, seen.path, seen.status, seen.body_bytes) == ("POST", "/x?y=1", 200, 3)
    assert (seen.account, seen.credential_header) == (cloud.trainer, "proxy-authorization")
    assert seen.headers["proxy-authorization"].startswith("Bearer <token sha256:")
    assert seen.headers["content-length"] == "3"
    everything = repr([cloud.requests, cloud.tokens, cloud.google_requests])
    for secret in (token, token.rpartition(".")[2], "c2VjcmV0", "s=v1"):
        assert secret not in everything
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.status = 500  # type: ignore[misc]
    cloud.forget()
    assert (cloud.requests, cloud.tokens, cloud.google_requests) == ([], [], [])


def test_nothing_listens_beyond_loopback(cloud: LocalCloud) -> None:
    """Every port of the cloud is bound to 127.0.0.1 only."""
    proxy = cloud.google_environment()["HTTPS_PROXY"]
    for url in (cloud.url, cloud.google_url, proxy):
        host, _, port = url.removeprefix("http://").partition(":")
        assert host == "127.0.0.1"
        # Another address of the loopback network would answer if all addresses were bound.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", int(port)), timeout=5)


def test_a_port_in_use_makes_the_start_fail(cloud: LocalCloud) -> None:
    """start raises the error and leaves nothing running."""
    other = LocalCloud(port=int(cloud.url.rpartition(":")[2]))
    before = threading.active_count()
    with pytest.raises(OSError, match="in use"):
        other.start()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="not running"):
        _ = other.url


def test_a_cloud_stops_under_load_and_starts_again(cloud: LocalCloud) -> None:
    """stop does not wait for clients and closes their connections; start works again."""
    cloud.fault("answer", body="x" * 2**25)
    addresses = [("127.0.0.1", urlsplit(url).port or 0) for url in (cloud.url, cloud.google_url)]
    with ThreadPoolExecutor(1) as threads, contextlib.ExitStack() as connections:
        unread = connections.enter_context(socket.create_connection(addresses[0]))
        unread.sendall(b"GET / HTTP/1.1\r\nHost: local\r\n\r\n")
        unread.recv(1)  # the rest of the response waits in the server
        cloud.delay = 600.0  # longer than a test may take
        waiting = threads.submit(requests.get, cloud.url, timeout=30)
        fresh = [
            connections.enter_context(socket.create_connection(address)) for address in addresses
        ]
        cloud.stop()
        assert isinstance(waiting.exception(), requests.ConnectionError)
        for connection in (unread, *fresh):
            connection.settimeout(5)
            with contextlib.suppress(ConnectionError):  # reset, or closed
                while connection.recv(2**20):
                    pass
    cloud.delay = 0.0
    cloud.start()
    with pytest.raises(RuntimeError, match="already"):
        cloud.start()
    assert requests.post(cloud.url, timeout=10).status_code == 401


def test_the_environment_is_for_a_client_with_a_key_file(cloud: LocalCloud) -> None:
    """environment() names the server, the auth provider, the key file and the client id."""
    variables = cloud.environment()
    key = json.loads(Path(variables.pop("GOOGLE_APPLICATION_CREDENTIALS")).read_text())
    assert key["client_email"] == cloud.trainer
    assert variables == {
        "MLFLOW_TRACKING_URI": cloud.url,
        "MLFLOW_TRACKING_AUTH": "iap",
        "MLFLOW_IAP_CLIENT_ID": cloud.client_id,
    }
