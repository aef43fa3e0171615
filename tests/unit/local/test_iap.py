"""Identity-Aware Proxy on this machine: whom it admits, and how it responds to others."""

from __future__ import annotations

import gzip
import http.client
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from google.auth import crypt, jwt
from google.auth.transport.requests import Request
from google.oauth2 import id_token, service_account

from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.local.accounts import Accounts
from mlflow_iap_callbacks.local.tokens import Mint

EMAIL_SCOPES = ["openid", "https://www.googleapis.com/auth/userinfo.email"]
ASSERTION_AUDIENCE = "/projects/123456789012/apps/local-project"


@pytest.fixture
def cloud() -> Iterator[LocalCloud]:
    with LocalCloud() as running:
        yield running


def make_id_token(cloud: LocalCloud, audience: str | None = None) -> str:
    credentials = service_account.IDTokenCredentials.from_service_account_file(
        cloud.key_file(), target_audience=audience or cloud.client_id
    )
    credentials.refresh(Request())
    return str(credentials.token)


def make_id_token_without_email(cloud: LocalCloud) -> str:
    answer = requests.post(
        f"{cloud.google_url}/v1/projects/-/serviceAccounts/{cloud.trainer}:generateIdToken",
        json={"audience": cloud.client_id, "includeEmail": False},
        headers={
            "Authorization": "Bearer "
            + make_access_token(cloud, ["https://www.googleapis.com/auth/cloud-platform"])
        },
        timeout=10,
    )
    return str(answer.json()["token"])


def make_access_token(cloud: LocalCloud, scopes: list[str]) -> str:
    credentials = service_account.Credentials.from_service_account_file(
        cloud.key_file(), scopes=scopes
    )
    credentials.refresh(Request())
    return str(credentials.token)


def sign_jwt(cloud: LocalCloud, audience: str | None = None, **claims: object) -> str:
    signer = crypt.RSASigner.from_service_account_file(str(cloud.key_file()))
    now = int(time.time())
    payload = {
        "iss": cloud.trainer,
        "sub": cloud.trainer,
        "aud": audience or f"{cloud.url}/*",
        "iat": now,
        "exp": now + 3600,
    }
    return str(jwt.encode(signer, {**payload, **claims}).decode())


def sign_with_foreign_key(cloud: LocalCloud) -> str:
    with LocalCloud() as other:
        return sign_jwt(other, f"{cloud.url}/*")


def user_token(cloud: LocalCloud, kind: str, allowlisted: bool) -> str:
    info = json.loads(cloud.desktop_file(allowlisted=allowlisted).read_text())
    answer = requests.post(
        f"{cloud.google_url}/token",
        data={
            "grant_type": "refresh_token",
            "client_id": info["client_id"],
            "client_secret": info["client_secret"],
            "refresh_token": info["refresh_token"],
        },
        timeout=10,
    )
    return str(answer.json()[kind])


def get(
    cloud: LocalCloud,
    token: str | None = None,
    path: str = "/",
    method: str = "GET",
    **headers: str,
) -> requests.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    return requests.request(
        method, cloud.url + path, headers=sent, allow_redirects=False, timeout=10
    )


REJECTED: dict[str, tuple[Callable[[LocalCloud], str], str]] = {
    "a token that is not a JWT": (
        lambda cloud: "garbage",
        "Invalid IAP credentials: Unable to parse JWT",
    ),
    "an unknown access token": (
        lambda cloud: "ya29.unknown",
        "Invalid IAP credentials: Unable to parse JWT",
    ),
    "a JWT signed with an unknown key": (
        sign_with_foreign_key,
        "Invalid IAP credentials: JWT signature is invalid",
    ),
    "a JWT that was tampered with": (
        lambda cloud: make_id_token(cloud)[:-12] + "AAAAAAAAAAAA",
        "Invalid IAP credentials: JWT signature is invalid",
    ),
    "an ID token for another client": (
        lambda cloud: make_id_token(cloud, "another.apps.googleusercontent.com"),
        "Invalid IAP credentials: Invalid bearer token. Invalid JWT audience.",
    ),
    "a signed JWT for another host": (
        lambda cloud: sign_jwt(cloud, "https://another.example/*"),
        "Invalid IAP credentials: Audience specified does not match requested endpoint",
    ),
    "a signed JWT for another path": (
        lambda cloud: sign_jwt(cloud, f"{cloud.url}/api"),
        "Invalid IAP credentials: Audience specified does not match requested endpoint",
    ),
    "an ID token without an e-mail": (
        make_id_token_without_email,
        "Invalid IAP credentials: JWT 'email' claim isn't a string",
    ),
    "an expired signed JWT": (
        lambda cloud: sign_jwt(cloud, iat=int(time.time()) - 4000, exp=int(time.time()) - 400),
        "OpenID Connect token expired: JWT has expired",
    ),
    "a signed JWT in another's name": (
        lambda cloud: sign_jwt(cloud, iss=cloud.user, sub=cloud.user),
        "Invalid IAP credentials: JWT 'iss' and 'sub' are not the e-mail of the key's owner",
    ),
    "a signed JWT for more than an hour": (
        lambda cloud: sign_jwt(cloud, exp=int(time.time()) + 7200),
        "Invalid IAP credentials: JWT 'exp' is more than 3600 seconds after 'iat'",
    ),
    "an access token without the e-mail scope": (
        lambda cloud: make_access_token(cloud, ["https://www.googleapis.com/auth/cloud-platform"]),
        "There was a problem with your request. Please reference "
        "https://cloud.google.com/iap/docs/faq#error_codes. Error code 900",
    ),
    "a person's access token from a client that is not allowlisted": (
        lambda cloud: user_token(cloud, "access_token", allowlisted=False),
        "There was a problem with your request. Please reference "
        "https://cloud.google.com/iap/docs/faq#error_codes. Error code 900",
    ),
    "a person's ID token from a client that is not allowlisted": (
        lambda cloud: user_token(cloud, "id_token", allowlisted=False),
        "Invalid IAP credentials: Invalid bearer token. Invalid JWT audience.",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_rejects_an_invalid_credential_with_the_real_sentence(cloud: LocalCloud, case: str) -> None:
    """Each invalid credential gets 401, the marker, and the sentence of the real IAP."""
    make_token, sentence = REJECTED[case]
    answer = get(cloud, make_token(cloud))
    assert answer.text == sentence
    assert answer.status_code == 401
    assert answer.headers["X-Goog-IAP-Generated-Response"] == "true"
    assert answer.headers["Content-Type"] == "text/html; charset=UTF-8"
    assert not cloud.requests[-1].reached_upstream


ACCEPTED: dict[str, tuple[Callable[[LocalCloud], str], str]] = {
    "an ID token": (make_id_token, "id_token"),
    "a signed JWT for all paths": (sign_jwt, "signed_jwt"),
    "a signed JWT for all paths of the https address": (
        lambda cloud: sign_jwt(cloud, f"{cloud.url.replace('http', 'https')}/*"),
        "signed_jwt",
    ),
    "a signed JWT for this path": (lambda cloud: sign_jwt(cloud, f"{cloud.url}/"), "signed_jwt"),
    "an access token with the e-mail scope": (
        lambda cloud: make_access_token(cloud, EMAIL_SCOPES),
        "access_token",
    ),
    "a person's ID token from an allowlisted client": (
        lambda cloud: user_token(cloud, "id_token", allowlisted=True),
        "id_token",
    ),
    "a person's access token from an allowlisted client": (
        lambda cloud: user_token(cloud, "access_token", allowlisted=True),
        "access_token",
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_admits_a_valid_credential(cloud: LocalCloud, case: str) -> None:
    """Each kind of credential that the real IAP accepts reaches the application."""
    make_token, kind = ACCEPTED[case]
    answer = get(cloud, make_token(cloud))
    assert (answer.status_code, answer.json()["method"]) == (200, "GET")
    assert "X-Goog-IAP-Generated-Response" not in answer.headers
    assert cloud.requests[-1].token_kind == kind


def test_an_id_token_expires_after_the_token_lifetime(cloud: LocalCloud) -> None:
    """An expired ID token gets a sentence without the prefix of the others."""
    token = make_id_token(cloud)
    cloud.clock_offset = 3590.0
    assert get(cloud, token).status_code == 200
    cloud.clock_offset = 3602.0
    answer = get(cloud, token)
    assert (answer.status_code, answer.text) == (
        401,
        "OpenID Connect token expired: JWT has expired",
    )
    assert answer.headers["Content-Length"] == "45"


def test_a_signed_jwt_expires_after_the_token_lifetime(cloud: LocalCloud) -> None:
    """A JWT signed for an hour is valid no longer than the cloud's token lifetime."""
    cloud.token_lifetime = 100.0
    token = sign_jwt(cloud)
    assert get(cloud, token).status_code == 200
    cloud.clock_offset = 101.0
    assert get(cloud, token).text == "OpenID Connect token expired: JWT has expired"


@pytest.mark.parametrize("make_token", [make_id_token, sign_jwt])
def test_revoked_tokens_are_rejected_as_expired_and_new_ones_are_valid(
    cloud: LocalCloud, make_token: Callable[[LocalCloud], str]
) -> None:
    """After revoke_tokens, the old token has expired and a new one passes."""
    token = make_token(cloud)
    cloud.revoke_tokens()
    assert get(cloud, token).text == "OpenID Connect token expired: JWT has expired"
    assert get(cloud, make_token(cloud)).status_code == 200


def test_an_id_token_that_replaces_a_revoked_one_of_the_same_second_has_another_text() -> None:
    accounts = Accounts()
    trainer = accounts.service_account(LocalCloud.trainer)
    mint = Mint(accounts, now=lambda: 1000.25, lifetime=lambda: 60.0)
    tokens = []
    for _ in range(3):
        tokens.append(mint.id_token(trainer, "audience", source="token_uri", azp="me"))
        assert not mint.is_revoked(tokens[-1])
        mint.revoke(tokens[-1])
    assert len(set(tokens)) == 3
    assert all(map(mint.is_revoked, tokens))


def test_with_the_google_managed_client_no_id_token_passes() -> None:
    """An ID token for the client in the redirect is rejected; a signed JWT passes."""
    with LocalCloud(client_id=None) as cloud:
        location = get(cloud).headers["Location"]
        (client_id,) = parse_qs(urlsplit(location).query)["client_id"]
        assert not client_id.startswith("123456789012-")
        rejected = get(cloud, make_id_token(cloud, client_id))
        assert rejected.text == (
            "Invalid IAP credentials: Invalid bearer token. Invalid JWT audience."
        )
        assert get(cloud, sign_jwt(cloud)).status_code == 200
        assert "MLFLOW_IAP_CLIENT_ID" not in cloud.environment()


def test_the_role_is_looked_up_on_each_request(cloud: LocalCloud) -> None:
    """An account that loses the role gets 403 immediately, and passes again once it has it back."""
    token = make_id_token(cloud)
    cloud.members.discard(cloud.trainer)
    denied = get(cloud, token)
    assert (denied.status_code, denied.text) == (
        403,
        f"MLflow: Access denied. For user {cloud.trainer}.",
    )
    assert denied.headers["X-Goog-IAP-Generated-Response"] == "true"
    cloud.members.add(cloud.trainer)
    assert get(cloud, token).status_code == 200


@pytest.mark.parametrize("accept", ["*/*", None])
def test_redirects_a_get_without_credentials_to_google(
    cloud: LocalCloud, accept: str | None
) -> None:
    """A GET without credentials gets 302 to Google with the client id and an XSRF cookie."""
    connection = http.client.HTTPConnection(urlsplit(cloud.url).netloc)
    connection.request("GET", "/x", headers={"Accept": accept} if accept else {})
    answer = connection.getresponse()
    location = urlsplit(answer.headers["Location"])
    assert (answer.status, answer.read()) == (302, b"Invalid IAP credentials: empty token")
    assert location.netloc + location.path == "accounts.google.com/o/oauth2/v2/auth"
    assert parse_qs(location.query)["client_id"] == [cloud.client_id]
    assert answer.headers["Set-Cookie"].startswith("GCP_IAP_XSRF_NONCE_")
    assert answer.headers["X-Goog-IAP-Generated-Response"] == "true"
    connection.close()


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", {}),
        ("DELETE", {}),
        ("GET", {"X_Requested_With": "XMLHttpRequest"}),
        ("GET", {"Accept": "application/json"}),
    ],
)
def test_responds_with_401_to_requests_that_cannot_follow_a_redirect(
    cloud: LocalCloud, method: str, headers: dict[str, str]
) -> None:
    """The sentence says that the token is empty."""
    answer = get(cloud, method=method, **headers)
    assert (answer.status_code, answer.text) == (401, "Invalid IAP credentials: empty token")


def test_proxy_authorization_leaves_authorization_to_the_application(cloud: LocalCloud) -> None:
    """A valid Proxy-Authorization wins and is removed, and Authorization passes unchanged."""
    answer = get(
        cloud, Proxy_Authorization=f"Bearer {make_id_token(cloud)}", Authorization="Basic dTpw"
    )
    received = answer.json()["headers"]
    assert received["authorization"] == "Basic dTpw"
    assert "proxy-authorization" not in received
    assert cloud.requests[-1].credential_header == "proxy-authorization"


def test_an_invalid_proxy_authorization_is_skipped_and_removed(cloud: LocalCloud) -> None:
    """If Proxy-Authorization is invalid, Authorization decides; neither is forwarded."""
    answer = get(cloud, make_id_token(cloud), Proxy_Authorization="Bearer garbage")
    received = answer.json()["headers"]
    assert "proxy-authorization" not in received
    assert "authorization" not in received
    assert cloud.requests[-1].credential_header == "authorization"


def test_the_application_gets_a_verifiable_assertion_and_no_forged_one(cloud: LocalCloud) -> None:
    """google-auth verifies the assertion; headers that a client forges are replaced or removed."""
    answer = get(
        cloud,
        make_id_token(cloud),
        X_Goog_IAP_JWT_Assertion="forged",
        X_Goog_Authenticated_User_Email="accounts.google.com:root@example.com",
        X_Goog_Whatever="forged",
    )
    received = answer.json()["headers"]
    claims = id_token.verify_token(
        received["x-goog-iap-jwt-assertion"],
        Request(),
        audience=ASSERTION_AUDIENCE,
        certs_url=f"{cloud.google_url}/iap/verify/public_key",
    )
    header = jwt.decode_header(received["x-goog-iap-jwt-assertion"])
    assert header["alg"] == "ES256"
    assert claims["iss"] == "https://cloud.google.com/iap"
    assert claims["exp"] - claims["iat"] == 600
    assert claims["email"] == cloud.trainer
    assert received["x-goog-authenticated-user-email"] == f"accounts.google.com:{cloud.trainer}"
    assert received["x-goog-authenticated-user-id"] == claims["sub"]
    assert "x-goog-whatever" not in received
    keys = requests.get(f"{cloud.google_url}/iap/verify/public_key-jwk", timeout=10).json()
    assert [key["kid"] for key in keys["keys"]] == [header["kid"]]


def test_identity_mode_shows_the_name_of_any_signed_in_account(cloud: LocalCloud) -> None:
    """?gcp-iap-mode=IDENTITY works even for an account without the role."""
    cloud.members.clear()
    answer = get(cloud, make_id_token(cloud), path="/?gcp-iap-mode=IDENTITY")
    assert answer.json()["email"] == f"accounts.google.com:{cloud.trainer}"
    assert not cloud.requests[-1].reached_upstream


def test_a_request_of_more_than_32_mib_is_rejected(cloud: LocalCloud) -> None:
    """App Engine's 413 is sent before the application is called, also to a chunked request."""
    token = make_id_token(cloud)
    headers = {"Authorization": f"Bearer {token}"}
    largest = b"x" * 33554432
    assert requests.put(cloud.url, largest, headers=headers, timeout=30).status_code == 200
    answer = requests.put(cloud.url, largest + b"x", headers=headers, timeout=30)
    assert (answer.status_code, "Request Entity Too Large" in answer.text) == (413, True)
    assert not cloud.requests[-1].reached_upstream
    chunks = iter([largest, b"x"])
    assert requests.put(cloud.url, chunks, headers=headers, timeout=30).status_code == 413


def test_an_application_that_is_down_gets_the_front_ends_502() -> None:
    """The response is a front end's page, without IAP's marker."""
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        with LocalCloud(f"http://127.0.0.1:{refusing.getsockname()[1]}") as cloud:
            answer = get(cloud, make_id_token(cloud))
    assert answer.status_code == 502
    assert "Please try again in 30 seconds" in answer.text
    assert "X-Goog-IAP-Generated-Response" not in answer.headers


class _Application(http.server.BaseHTTPRequestHandler):
    """Responds with what proxies may change: redirects, compression, chunks, HEAD, large bodies."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/moved":
            self._answer(302, b"", Location="https://elsewhere.example/")
        elif self.path == "/compressed":
            self._answer(200, gzip.compress(b"text" * 100), Content_Encoding="gzip")
        elif self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        elif self.path == "/broken":
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"abc")
            self.close_connection = True
        else:
            self._answer(200, b"z" * 30_000_000, Connection="X-Private", X_Private="1")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, body, Content_Encoding=self.headers.get("Content-Encoding", "identity"))

    def do_OPTIONS(self) -> None:
        self._answer(204, b"", Allow="GET")

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def application_cloud() -> Iterator[LocalCloud]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Application) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with LocalCloud(f"http://127.0.0.1:{server.server_address[1]}") as running:
            yield running
        server.shutdown()
        thread.join()


def test_forwards_the_applications_responses_unchanged(application_cloud: LocalCloud) -> None:
    """Redirects are not followed, bodies stay compressed, HEAD has a length."""
    cloud = application_cloud
    token = make_id_token(cloud)
    moved = get(cloud, token, "/moved")
    assert (moved.status_code, moved.headers["Location"]) == (302, "https://elsewhere.example/")
    compressed = get(cloud, token, "/compressed")
    assert compressed.headers["Content-Encoding"] == "gzip"
    assert compressed.content == b"text" * 100
    assert get(cloud, token, "/chunked").content == b"abcde"
    head = get(cloud, token, method="HEAD")
    assert (head.headers["Content-Length"], head.content) == ("30000000", b"")
    assert get(cloud, token, method="OPTIONS").status_code == 204
    large = get(cloud, token)
    assert len(large.content) == 30_000_000
    assert "X-Private" not in large.headers


def test_a_response_that_the_application_interrupts_is_interrupted(
    application_cloud: LocalCloud,
) -> None:
    """The client sees that the body is incomplete, and the next request works."""
    token = make_id_token(application_cloud)
    with pytest.raises(requests.RequestException):
        get(application_cloud, token, "/broken")
    assert get(application_cloud, token, "/chunked").content == b"abcde"


def test_a_client_that_disconnects_during_an_upload_affects_no_other_client(
    cloud: LocalCloud, caplog: pytest.LogCaptureFixture
) -> None:
    """Half an upload is in the request log, and nothing is logged about it elsewhere."""
    host, port = urlsplit(cloud.url).netloc.split(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /half HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n"
        client.sendall(f"{head}Authorization: Bearer {make_id_token(cloud)}\r\n\r\nhal".encode())
    deadline = time.monotonic() + 10
    while not cloud.requests:
        assert not threading.Event().wait(0.005)
        assert time.monotonic() < deadline
    assert cloud.requests[0].path == "/half"
    assert get(cloud, make_id_token(cloud)).status_code == 200
    assert caplog.records == []


def test_forwards_a_compressed_request_unchanged(application_cloud: LocalCloud) -> None:
    """A gzip body reaches the application with the bytes and the length that were sent."""
    body = gzip.compress(b"spans" * 1000)
    answer = requests.post(
        application_cloud.url,
        body,
        headers={
            "Authorization": f"Bearer {make_id_token(application_cloud)}",
            "Content-Encoding": "gzip",
        },
        timeout=10,
    )
    assert answer.content == b"spans" * 1000
    assert application_cloud.requests[-1].body_bytes == len(body)


BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Mode": "navigate"}


def test_a_person_signs_in_with_a_button_and_out_again(cloud: LocalCloud) -> None:
    """The page's button leads back with a session, which still needs the role."""
    browser = requests.Session()
    browser.headers.update(BROWSER)
    page = browser.get(f"{cloud.url}/runs?x=1", timeout=10)
    assert page.url.startswith(f"{cloud.google_url}/signin?continue=")
    assert cloud.user in page.text
    assert cloud.trainer in page.text
    back = browser.post(
        f"{cloud.google_url}/signin",
        data={"account": cloud.user, "continue": f"{cloud.url}/runs?x=1"},
        timeout=10,
    )
    assert (back.url, back.json()["path"]) == (f"{cloud.url}/runs?x=1", "/runs?x=1")
    (session,) = [c for c in browser.cookies if c.name.startswith("GCP_IAP_SESSION_")]
    assert session.has_nonstandard_attr("HttpOnly")
    assert session.get_nonstandard_attr("SameSite") == "Lax"
    assert browser.post(f"{cloud.url}/api", timeout=10).status_code == 200
    assert cloud.requests[-1].account == cloud.user

    cloud.members.discard(cloud.user)
    denied = browser.get(cloud.url, timeout=10)
    assert (denied.status_code, denied.text) == (
        403,
        f"MLflow: Access denied. For user {cloud.user}.",
    )
    browser.get(f"{cloud.url}/?gcp-iap-mode=CLEAR_LOGIN_COOKIE", timeout=10)
    assert "/signin?continue=" in browser.get(cloud.url, timeout=10).url


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "{url}.evil.example/", "//evil.example", "{url}/\\evil", ""]
)
def test_sign_in_redirects_to_no_other_origin(cloud: LocalCloud, target: str) -> None:
    """A URL outside of the application's origin is rejected in each step."""
    target = target.format(url=cloud.url)
    page = f"{cloud.google_url}/signin"
    query = {"continue": target}
    assert requests.get(page, params=query, timeout=10).status_code == 400
    chosen = requests.post(page, data={**query, "account": cloud.user}, timeout=10)
    assert chosen.status_code == 400
    callback = f"{cloud.url}/_gcp_gatekeeper/authenticate"
    assert requests.get(callback, params=query, timeout=10).status_code == 400


def test_a_code_signs_in_once_and_is_not_logged(cloud: LocalCloud) -> None:
    """The one-time code of a sign-in is rejected the second time."""
    chosen = requests.post(
        f"{cloud.google_url}/signin",
        data={"account": cloud.user, "continue": f"{cloud.url}/"},
        allow_redirects=False,
        timeout=10,
    )
    callback = chosen.headers["Location"]
    assert requests.get(callback, allow_redirects=False, timeout=10).status_code == 302
    assert requests.get(callback, allow_redirects=False, timeout=10).status_code == 400
    assert cloud.requests[-1].path == "/_gcp_gatekeeper/authenticate"


def test_an_unsigned_session_cookie_is_no_credential(cloud: LocalCloud) -> None:
    cookie = f"GCP_IAP_SESSION_{urlsplit(cloud.url).port}=ada"
    assert get(cloud, method="POST", Cookie=cookie).status_code == 401


def test_a_url_may_be_as_long_as_mlflow_s_server_accepts(cloud: LocalCloud) -> None:
    query = "&".join(f"run_id={number:032}" for number in range(1500))
    headers = {"Authorization": f"Bearer {make_id_token(cloud)}"}
    answer = requests.get(f"{cloud.url}/x?{query}", headers=headers, timeout=10)
    assert len(query) > 58_000
    assert answer.json()["path"] == f"/x?{query}"


def test_a_folder_may_be_given_as_text(tmp_path: Path) -> None:
    with LocalCloud(folder=str(tmp_path / "cloud")) as other:
        assert other.key_file().parent == tmp_path / "cloud"
