"""The token on requests to one server, and the errors for IAP's responses."""

from __future__ import annotations

import io
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

import mlflow_iap_callbacks
from bare_server import BareServer
from credentials_helpers import revoke_issued
from mlflow_iap_callbacks import (
    IAPConfigurationError,
    IAPCredentials,
    IAPRefusedError,
    IAPUnavailableError,
    IAPUnknownOutcomeError,
)
from mlflow_iap_callbacks.iap.auth import IAPAuth
from mlflow_iap_callbacks.iap.origins import origin_of
from mlflow_iap_callbacks.iap.retry_policy import RetryPolicy
from mlflow_iap_callbacks.iap.transport import IAPTransport
from mlflow_iap_callbacks.local import LocalCloud
from variables import set_all

Sessions = Callable[[IAPAuth], requests.Session]


def _statuses(cloud: LocalCloud) -> list[int]:
    return [seen.status for seen in cloud.requests]


def _code(number: int) -> str:
    return (
        "There was a problem with your request. Please reference "
        f"https://cloud.google.com/iap/docs/faq#error_codes. Error code {number}"
    )


# --- sending tokens --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_token_is_sent_once_iap_asks_for_one_and_then_with_every_request(
    echo: LocalCloud, session: Sessions, method: str
) -> None:
    http_session = session(IAPAuth(echo.url))
    for _ in range(3):
        assert http_session.request(method, echo.url + "/a").status_code == 200
    challenge = {"GET": 302, "POST": 401}[method]
    assert _statuses(echo) == [challenge, 200, 200, 200]
    assert len(echo.tokens) == 1


def test_a_plain_requests_session_is_authenticated_too(echo: LocalCloud) -> None:
    answer = requests.post(echo.url + "/a", json={"x": 1}, auth=IAPAuth(echo.url))
    assert answer.json()["body_bytes"] == len(json.dumps({"x": 1}))
    assert _statuses(echo) == [401, 200]


def test_a_session_sends_spans_as_opentelemetry_s_exporter_does(echo: LocalCloud) -> None:
    session = mlflow_iap_callbacks.IAPAuth(echo.url).session()
    session.headers.update({"Content-Type": "application/x-protobuf"})
    echo.fault("answer", status=503, path="/v1/traces", skip=1)
    for _ in range(2):
        answer = session.post(
            url=f"{echo.url}/v1/traces", data=b"spans", verify=True, timeout=10, cert=None
        )
        assert answer.json()["body_bytes"] == 5
    session.close()
    assert [status for status in _statuses(echo) if status != 503] == [401, 200, 200]


def test_a_plain_session_sends_the_token_at_once_if_iap_has_asked_for_one_before(
    echo: LocalCloud,
) -> None:
    auth = IAPAuth(echo.url)
    for _ in range(2):
        requests.get(echo.url + "/a", auth=auth)
    revoke_issued(echo)
    requests.put(echo.url + "/a", data=io.BytesIO(b"body"), auth=auth)
    assert _statuses(echo) == [302, 200, 200, 401, 200]
    assert echo.requests[-1].body_bytes == 4
    assert len(echo.tokens) == 2


def test_a_server_without_iap_never_gets_a_token(
    echo: LocalCloud, session: Sessions, bare_server: BareServer
) -> None:
    auth = IAPAuth(bare_server.url)
    assert session(auth).get(bare_server.url + "/a").text == "hello"
    assert "Authorization" not in bare_server.seen[0]
    assert not echo.tokens


def test_proxy_authorization_has_the_token_if_basic_authentication_uses_the_other_header(
    echo: LocalCloud, session: Sessions
) -> None:
    answer = session(IAPAuth(echo.url)).get(
        echo.url + "/a", headers={"Authorization": "Basic dTpw"}
    )
    assert answer.json()["headers"]["authorization"] == "Basic dTpw"
    assert echo.requests[-1].credential_header == "proxy-authorization"


def test_the_token_replaces_netrc_credentials_and_a_stale_bearer(
    echo: LocalCloud, session: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login u password p\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    answer = session(IAPAuth(echo.url)).get(
        echo.url + "/a", headers={"Authorization": "Bearer stale"}
    )
    assert answer.status_code == 200
    assert echo.requests[-1].credential_header == "authorization"


# --- replacing tokens ------------------------------------------------------------------------


def test_a_rejected_token_is_replaced_and_the_request_is_retried(
    echo: LocalCloud, session: Sessions
) -> None:
    http_session = session(IAPAuth(echo.url))
    http_session.get(echo.url + "/a")
    revoke_issued(echo)
    assert http_session.post(echo.url + "/b", data=b"body").json()["body_bytes"] == 4
    assert _statuses(echo)[-2:] == [401, 200]
    assert len(echo.tokens) == 2


def test_32_threads_with_a_rejected_token_fetch_only_one_new_token(
    echo: LocalCloud, session: Sessions
) -> None:
    auth = IAPAuth(echo.url)
    session(auth).get(echo.url + "/a")
    revoke_issued(echo)
    together = threading.Barrier(32)

    def call(number: int) -> int:
        http_session = session(auth)
        together.wait(30)
        return http_session.get(f"{echo.url}/{number}").status_code

    with ThreadPoolExecutor(32) as threads:
        assert list(threads.map(call, range(32))) == [200] * 32
    assert len(echo.tokens) == 2
    arrived = [seen.path for seen in echo.requests if seen.reached_upstream]
    assert sorted(arrived) == sorted(["/a", *(f"/{number}" for number in range(32))])


@pytest.mark.parametrize("skip", [0, 7])
def test_a_stream_is_rewound_to_its_initial_position(
    echo: LocalCloud, session: Sessions, skip: int
) -> None:
    http_session = session(IAPAuth(echo.url))
    http_session.get(echo.url + "/a")
    revoke_issued(echo)
    stream = io.BytesIO(bytes(100_000))
    stream.seek(skip)
    answer = http_session.put(echo.url + "/b", data=stream)
    assert answer.json()["body_bytes"] == 100_000 - skip
    assert _statuses(echo)[-2:] == [401, 200]


def test_a_stream_that_cannot_be_rewound_raises_instead_of_sending_half_a_body(
    echo: LocalCloud, session: Sessions
) -> None:
    http_session = session(IAPAuth(echo.url))
    with pytest.raises(requests.exceptions.UnrewindableBodyError):
        http_session.put(echo.url + "/b", data=iter([b"1", b"2"]))
    assert not [seen for seen in echo.requests if seen.reached_upstream]


def test_a_request_for_a_token_or_a_new_token_does_not_count_as_an_attempt(
    echo: LocalCloud, session: Sessions
) -> None:
    http_session = session(IAPAuth(echo.url, retry=RetryPolicy(max_attempts=1)))
    assert http_session.get(echo.url + "/a").status_code == 200
    revoke_issued(echo)
    assert http_session.get(echo.url + "/b").status_code == 200
    echo.fault("answer", status=500)
    assert http_session.get(echo.url + "/c").status_code == 500


def test_a_token_that_keeps_expiring_is_replaced_until_the_deadline(
    echo: LocalCloud, session: Sessions
) -> None:
    body = "OpenID Connect token expired: JWT has expired"
    http_session = session(IAPAuth(echo.url))
    http_session.get(echo.url + "/a")
    echo.fault("answer", status=401, body=body, from_iap=True, times=3)
    assert http_session.get(echo.url + "/b").status_code == 200
    assert _statuses(echo)[-4:] == [401, 401, 401, 200]


# --- refused ---------------------------------------------------------------------------------

_PREFIX = "Invalid IAP credentials: "
_REFUSALS = [
    (401, _PREFIX + "empty token", "token", "strips"),
    (401, _PREFIX + "Unable to parse JWT", "token", "Authorization header"),
    (401, _PREFIX + "JWT signature is invalid", "account", "new key file"),
    (401, _PREFIX + "Invalid bearer token. Invalid JWT audience.", "audience", "CLIENT_ID"),
    (
        401,
        _PREFIX + "JWT audience doesn't match this application ('aud' claim (X) doesn't match "
        "expected value (Y))",
        "audience",
        "CLIENT_ID",
    ),
    (401, _PREFIX + "Audience specified does not match requested endpoint", "audience", "host"),
    (401, _PREFIX + "JWT 'email' claim isn't a string", "account", "IMPERSONATE"),
    (401, "OpenID Connect token expired: JWT has expired", "token", "credentials"),
    (401, _code(900), "allowlist", "programmaticClients"),
    (403, "My App: Access denied. For user a@b.com.", "role", "roles/iap.httpsResourceAccessor"),
    (302, _PREFIX + "empty token", "token", "strips"),
    (400, _code(9), "setup", "faq#error_codes"),
    (400, _code(11), "setup", "faq#error_codes"),
    (400, _code(52), "setup", "faq#error_codes"),
    (502, "Empty Google Account OAuth client ID(s)/secret(s).", "setup", "OAuth client"),
]


@pytest.mark.parametrize(("status", "answer", "reason", "hint"), _REFUSALS)
def test_each_response_of_iap_becomes_an_error_with_its_reason_and_remedy(
    echo: LocalCloud, session: Sessions, status: int, answer: str, reason: str, hint: str
) -> None:
    auth = IAPAuth(echo.url, retry=RetryPolicy(max_attempts=4, deadline=5.0))
    http_session = session(auth)
    http_session.get(echo.url + "/a")
    echo.fault("answer", status=status, body=answer, from_iap=True, times=0)
    with pytest.raises(IAPRefusedError) as caught:
        http_session.get(echo.url + "/b")
    error = caught.value
    assert (error.reason, error.status, error.answer) == (reason, status, answer)
    assert hint in error.message
    assert echo.trainer in error.message
    assert pickle.loads(pickle.dumps(error)).reason == reason


def test_the_error_for_a_missing_role_names_the_account_and_the_command_that_grants_it(
    echo: LocalCloud, session: Sessions
) -> None:
    echo.members.clear()
    with pytest.raises(IAPRefusedError) as caught:
        session(IAPAuth(echo.url)).get(echo.url + "/a")
    assert caught.value.reason == "role"
    assert f"--member=serviceAccount:{echo.trainer}" in caught.value.message
    assert caught.value.error_code == "PERMISSION_DENIED"
    echo.members.add(echo.trainer)
    assert session(IAPAuth(echo.url)).get(echo.url + "/a").status_code == 200


def test_the_error_for_an_id_token_of_a_google_managed_client_blames_the_audience(
    session: Sessions,
) -> None:
    with LocalCloud(client_id=None) as managed:
        credentials = IAPCredentials("1-x.apps.googleusercontent.com", key_file=managed.key_file())
        with pytest.raises(IAPRefusedError, match="unset MLFLOW_IAP_CLIENT_ID") as caught:
            session(IAPAuth(managed.url, credentials)).get(managed.url + "/a")
        assert caught.value.reason == "audience"
        signed = IAPCredentials(key_file=managed.key_file())
        assert session(IAPAuth(managed.url, signed)).get(managed.url + "/a").status_code == 200


def test_the_error_for_a_desktop_client_that_is_not_on_the_allowlist_blames_the_allowlist(
    echo: LocalCloud, session: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, echo.google_environment())
    monkeypatch.delenv("MLFLOW_IAP_CLIENT_ID")
    desktop = IAPCredentials(key_file=echo.desktop_file(allowlisted=False))
    with pytest.raises(IAPRefusedError, match="programmaticClients") as caught:
        session(IAPAuth(echo.url, desktop)).get(echo.url + "/a")
    assert caught.value.reason == "allowlist"


def test_the_error_for_a_clock_that_is_off_blames_the_clock(session: Sessions) -> None:
    with LocalCloud(client_id=None) as cloud:
        cloud.clock_offset = 7200.0
        auth = IAPAuth(
            cloud.url, IAPCredentials(key_file=cloud.key_file()), RetryPolicy(deadline=2.0)
        )
        with pytest.raises(IAPRefusedError, match=r"clock is 7[12]\d\d s behind") as caught:
            session(auth).get(cloud.url + "/a")
        assert caught.value.reason == "clock"


def test_a_401_of_the_application_is_passed_on(echo: LocalCloud, session: Sessions) -> None:
    http_session = session(IAPAuth(echo.url))
    http_session.get(echo.url + "/a")
    echo.fault("answer", status=401, body="You are not authenticated", from_iap=False)
    assert http_session.get(echo.url + "/b").status_code == 401
    assert len(echo.tokens) == 1


def test_the_sign_in_page_is_never_followed(echo: LocalCloud, session: Sessions) -> None:
    http_session = session(IAPAuth(echo.url))
    http_session.get(echo.url + "/a")
    echo.fault("answer", status=302, from_iap=True, times=0)
    with pytest.raises(IAPRefusedError):
        http_session.get(echo.url + "/b", stream=True)


# --- one origin ------------------------------------------------------------------------------


@pytest.fixture
def bare_server() -> Iterator[BareServer]:
    with BareServer() as server:
        yield server


@pytest.mark.parametrize("basic", [False, True])
@pytest.mark.parametrize("transport", [False, True])
def test_a_redirect_to_another_origin_never_receives_the_token(
    bare_server: BareServer,
    session: Sessions,
    monkeypatch: pytest.MonkeyPatch,
    basic: bool,
    transport: bool,
) -> None:
    headers = {"Authorization": "Basic dTpw"} if basic else {}
    with BareServer() as target, LocalCloud(bare_server.url) as cloud:
        bare_server.location = f"{target.url}/elsewhere"
        credentials = IAPCredentials(cloud.client_id, key_file=cloud.key_file())
        auth = IAPAuth(cloud.url, credentials)
        http_session = session(auth) if transport else requests.Session()
        answer = http_session.get(cloud.url + "/a", headers=headers, auth=auth)
        assert answer.text == "hello"
        token = credentials.token()
        assert cloud.requests[-1].status == 307
        assert cloud.requests[-1].token_kind == "id_token"
        assert len(target.seen) == 1
        assert not {"Authorization", "Proxy-Authorization"} & set(target.seen[0])
        assert token not in str(target.seen)


def test_a_redirect_within_the_origin_keeps_the_token(
    bare_server: BareServer, session: Sessions
) -> None:
    with LocalCloud(bare_server.url) as cloud:
        bare_server.location = "/elsewhere"
        auth = IAPAuth(cloud.url, IAPCredentials(cloud.client_id, key_file=cloud.key_file()))
        http_session = session(auth)
        http_session.max_redirects = 2
        with pytest.raises(requests.TooManyRedirects):
            http_session.get(cloud.url + "/a")
        assert [seen.token_kind for seen in cloud.requests[1:]] == ["id_token"] * 3


def test_a_redirect_to_another_server_behind_iap_does_not_end_at_its_sign_in_page(
    echo: LocalCloud, bare_server: BareServer, session: Sessions
) -> None:
    bare_server.location = echo.url + "/a"
    auth = IAPAuth(bare_server.url)
    with pytest.raises(IAPConfigurationError, match=f"MLFLOW_TRACKING_URI={echo.url} "):
        session(auth).get(bare_server.url + "/a")


def test_requests_to_other_origins_are_left_alone(
    echo: LocalCloud, bare_server: BareServer
) -> None:
    auth = IAPAuth(echo.url)
    requests.get(echo.url, auth=auth)
    requests.get(bare_server.url, auth=auth)
    assert not {"Authorization", "Proxy-Authorization"} & set(bare_server.seen[0])


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Host.example/path?x", "https://host.example"),
        ("https://host:443", "https://host"),
        ("http://127.0.0.1:5000/", "http://127.0.0.1:5000"),
        ("http://[::1]:80/", "http://[::1]"),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize("url", ["", "mlflow", "ftp://host", "https://", "https://host:port"])
def test_an_invalid_server_url_is_an_error(url: str) -> None:
    with pytest.raises(IAPConfigurationError, match="https://HOST"):
        IAPAuth(url)


@pytest.mark.parametrize(
    "url", ["http://mlflow.example", "http://10.0.0.3:5000", "http://localhost.example"]
)
def test_plain_http_to_another_machine_is_rejected(url: str) -> None:
    with pytest.raises(IAPConfigurationError, match="Use https"):
        IAPAuth(url)


@pytest.mark.parametrize(
    "url", ["http://localhost:5000", "http://127.1.2.3", "http://[::1]:5000", "http://a.localhost"]
)
def test_plain_http_to_this_machine_is_allowed(url: str) -> None:
    IAPAuth(url)


@pytest.mark.parametrize("transport", [False, True])
def test_no_proxy_from_the_environment_sees_a_token_in_plain_http(
    echo: LocalCloud, session: Sessions, monkeypatch: pytest.MonkeyPatch, transport: bool
) -> None:
    auth = IAPAuth(echo.url)
    with BareServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        http_session = session(auth) if transport else requests.Session()
        auth.is_asked = True
        for _ in range(2):
            http_session.get(echo.url + "/a", auth=auth)
        assert not [seen for seen in proxy.seen if "Authorization" in seen]
        if transport:
            assert _statuses(echo) == [200, 200]
            assert echo.tokens
            assert not proxy.seen


# --- retries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_request_to_a_busy_server_is_retried(
    echo: LocalCloud, session: Sessions, status: int
) -> None:
    echo.fault("answer", status=status, times=2)
    answer = session(IAPAuth(echo.url)).get(echo.url + "/a")
    assert answer.status_code == 200
    assert _statuses(echo)[:2] == [status, status]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_respected(
    echo: LocalCloud, session: Sessions, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(RetryPolicy, "sleep", staticmethod(slept.append))
    echo.fault("answer", status=status, retry_after=30)
    session(IAPAuth(echo.url)).get(echo.url + "/a")
    assert slept[0] == 30.0
    assert _statuses(echo)[0] == status


def test_a_retry_after_beyond_the_deadline_ends_the_attempts_at_once(
    echo: LocalCloud, session: Sessions
) -> None:
    echo.fault("answer", status=503, retry_after=3600)
    auth = IAPAuth(echo.url, retry=RetryPolicy(deadline=5.0))
    with pytest.raises(IAPUnavailableError, match="answered 503"):
        session(auth).get(echo.url + "/a")
    assert _statuses(echo) == [503]


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_a_request_is_retried_after_a_lost_connection_if_repeating_it_does_no_harm(
    echo: LocalCloud, session: Sessions, kind: str
) -> None:
    http_session = session(IAPAuth(echo.url))
    http_session.get(echo.url + "/a")
    echo.fault(kind, path="log-batch")  # type: ignore[arg-type]
    path = "/api/2.0/mlflow/runs/log-batch"
    assert http_session.post(echo.url + path, json={}).status_code == 200
    assert _statuses(echo)[-2:] == [0, 200]


@pytest.mark.parametrize("kind", ["reset_before", "reset_after", "answer_after"])
def test_a_create_request_is_not_retried_if_its_response_is_lost(
    echo: LocalCloud, session: Sessions, kind: str
) -> None:
    http_session = session(IAPAuth(echo.url))
    http_session.get(echo.url + "/a")
    echo.fault(kind, path="create", status=502)  # type: ignore[arg-type]
    with pytest.raises(IAPUnknownOutcomeError, match="model-versions/create"):
        http_session.post(echo.url + "/api/2.0/mlflow/model-versions/create", json={})
    assert len([seen for seen in echo.requests if "create" in seen.path]) == 1


def test_a_create_request_is_retried_if_it_certainly_had_no_effect(
    echo: LocalCloud, session: Sessions
) -> None:
    http_session = session(IAPAuth(echo.url))
    echo.fault("answer", status=429, retry_after=0, times=1, path="create")
    assert http_session.post(echo.url + "/runs/create", json={}).status_code == 200


def test_a_request_that_was_sent_is_waited_for_although_the_deadline_is_over(
    echo: LocalCloud, session: Sessions
) -> None:
    http_session = session(IAPAuth(echo.url))
    http_session.get(echo.url + "/a")
    echo.delay = 0.3
    response = RetryPolicy(deadline=0.2)(lambda: http_session.get(echo.url + "/b", timeout=10))
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("given", "used"),
    [(120.0, (10.0, 120.0)), (5.0, (5.0, 5.0)), (None, (10.0, None)), ((1.0, 2.0), (1.0, 2.0))],
)
def test_a_connection_is_waited_for_no_longer_than_ten_seconds(given: Any, used: Any) -> None:
    seen: list[Any] = []

    class _Inner(requests.adapters.HTTPAdapter):
        def send(self, *_: Any, timeout: Any = None, **__: Any) -> requests.Response:
            seen.append(timeout)
            response = requests.Response()
            response.status_code = 200
            return response

    transport = IAPTransport(lambda request, once: [once(request), once(request)][-1], _Inner())
    RetryPolicy(deadline=1.0)(
        lambda: transport.send(requests.PreparedRequest(), stream=True, timeout=given)
    )
    assert seen == [used, used]


def test_an_unreachable_server_raises_its_own_error_at_the_deadline(
    session: Sessions, free_port: int
) -> None:
    url = f"http://127.0.0.1:{free_port}"
    auth = IAPAuth(url, retry=RetryPolicy(deadline=1.0))
    with pytest.raises(requests.ConnectionError, match="refused"):
        session(auth).post(url + "/runs/create", json={})


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_an_auth_can_be_pickled_without_its_token(echo: LocalCloud, session: Sessions) -> None:
    auth = IAPAuth(echo.url)
    session(auth).get(echo.url + "/a")
    pickled = pickle.dumps(auth)
    assert auth.credentials.token().encode() not in pickled
    assert session(pickle.loads(pickled)).get(echo.url + "/b").status_code == 200
