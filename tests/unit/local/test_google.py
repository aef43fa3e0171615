"""Google's endpoints on this machine, used by the real google-auth."""

from __future__ import annotations

import base64
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

import pytest
import requests
from google.auth import crypt, jwt
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import Request
from google.oauth2 import id_token, service_account

import python_process
from fork_server import FOR_GOOGLE_AUTH
from mlflow_iap_callbacks.local import LocalCloud

CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
FOREIGN_VARIABLES = ("GOOGLE_", "GCE_", "CLOUDSDK_", "GCLOUD_")


@pytest.fixture
def cloud() -> Iterator[LocalCloud]:
    with LocalCloud() as running:
        yield running


def run(script: str, *variables: Mapping[str, str]) -> dict[str, str]:
    """Run a script in a new process, as google-auth reads its environment at import."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN_VARIABLES) and not name.lower().endswith("_proxy")
    }
    for more in variables:
        own.update(more)
    done = python_process.run("-c", script, environment=own, modules=FOR_GOOGLE_AUTH)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def adc(path: Path) -> dict[str, str]:
    return {"GOOGLE_APPLICATION_CREDENTIALS": str(path), "GOOGLE_CLOUD_PROJECT": "local-project"}


def status_at_iap(cloud: LocalCloud, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return requests.get(cloud.url, headers=headers, timeout=10).status_code


def call_iam(
    cloud: LocalCloud, method: str, body: object, token: str | None = None
) -> requests.Response:
    if token is None:
        credentials = service_account.Credentials.from_service_account_file(
            cloud.key_file(), scopes=[CLOUD_PLATFORM]
        )
        credentials.refresh(Request())
        token = str(credentials.token)
    return requests.post(
        f"{cloud.google_url}/v1/projects/-/serviceAccounts/{cloud.trainer}:{method}",
        json=body,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=10,
    )


def test_a_key_file_gives_an_id_token_that_google_auth_verifies(cloud: LocalCloud) -> None:
    """google-auth's service account flow works unpatched, and its verification too."""
    credentials = service_account.IDTokenCredentials.from_service_account_file(
        cloud.key_file(), target_audience=cloud.client_id
    )
    credentials.refresh(Request())
    claims = id_token.verify_token(
        credentials.token,
        Request(),
        audience=cloud.client_id,
        certs_url=f"{cloud.google_url}/oauth2/v1/certs",
    )
    assert claims["iss"] == "https://accounts.google.com"
    assert (claims["email"], claims["email_verified"]) == (cloud.trainer, True)
    assert claims["azp"] == cloud.trainer
    assert claims["exp"] - claims["iat"] in (3600, 3601)
    assert [(t.kind, t.account, t.audience, t.source) for t in cloud.tokens] == [
        ("id_token", cloud.trainer, cloud.client_id, "token_uri")
    ]


def test_a_jwt_signed_with_a_key_file_needs_no_token_endpoint(cloud: LocalCloud) -> None:
    """google.auth.jwt signs for all paths, IAP accepts it, and no Google endpoint is called."""
    credentials = jwt.Credentials.from_service_account_file(
        str(cloud.key_file()), audience=f"{cloud.url}/*"
    )
    credentials.refresh(Request())
    assert status_at_iap(cloud, credentials.token.decode()) == 200
    assert cloud.google_requests == []


def test_key_file_creates_an_unknown_service_account(cloud: LocalCloud) -> None:
    """The new account has no role until it becomes a member."""
    email = "fresh@local-project.iam.gserviceaccount.com"
    credentials = service_account.IDTokenCredentials.from_service_account_file(
        cloud.key_file(email), target_audience=cloud.client_id
    )
    credentials.refresh(Request())
    assert status_at_iap(cloud, credentials.token) == 403
    cloud.members.add(email)
    assert status_at_iap(cloud, credentials.token) == 200
    certificates = requests.get(
        f"{cloud.google_url}/robot/v1/metadata/x509/{email}", timeout=10
    ).json()
    assert list(certificates) == [json.loads(cloud.key_file(email).read_text())["private_key_id"]]


@pytest.mark.parametrize(
    ("claims", "description"),
    [
        (
            {"iat": -2000, "exp": -1000},
            "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable "
            "timeframe. Check your iat and exp values in the JWT claim.",
        ),
        (
            {"iat": 700, "exp": 4300},
            "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable "
            "timeframe. Check your iat and exp values in the JWT claim.",
        ),
        ({"aud": "https://elsewhere.example"}, "Invalid JWT: Failed audience check."),
        ({"kid": "unknown"}, "Invalid JWT Signature."),
    ],
)
def test_the_token_endpoint_rejects_an_invalid_assertion(
    cloud: LocalCloud, claims: dict[str, object], description: str
) -> None:
    """A wrong clock, audience or key gets Google's invalid_grant and Google's text."""
    signer = crypt.RSASigner.from_service_account_file(str(cloud.key_file()))
    offsets = {"iat": 0, "exp": 3600, **claims}
    now = int(time.time())
    payload = {
        "iss": cloud.trainer,
        "aud": claims.get("aud", "https://oauth2.googleapis.com/token"),
        "target_audience": "x",
        "iat": now + int(str(offsets["iat"])),
        "exp": now + int(str(offsets["exp"])),
    }
    assertion = jwt.encode(signer, payload, key_id=claims.get("kid")).decode()
    answer = requests.post(
        f"{cloud.google_url}/token",
        data={"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion},
        timeout=10,
    )
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "invalid_grant", "error_description": description},
    )


def test_google_auth_fails_if_googles_clock_is_far_ahead(cloud: LocalCloud) -> None:
    """The error is Google's sentence, and the Date header is by Google's clock."""
    cloud.clock_offset = 7200.0
    credentials = service_account.IDTokenCredentials.from_service_account_file(
        cloud.key_file(), target_audience="x"
    )
    with pytest.raises(RefreshError, match="reasonable timeframe"):
        credentials.refresh(Request())
    date = requests.get(cloud.google_url, timeout=10).headers["Date"]
    ahead = parsedate_to_datetime(date).timestamp() - time.time()
    assert 7140 < ahead < 7260


FETCH = """
import json, sys
import google.auth, google.auth.transport.requests
from google.auth import impersonated_credentials
request = google.auth.transport.requests.Request()
credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
"""
IMPERSONATED_ID_TOKEN = (
    FETCH
    + """
credentials = impersonated_credentials.IDTokenCredentials(
    credentials, target_audience="AUDIENCE", include_email=True)
credentials.refresh(request)
print(json.dumps({"token": credentials.token}))
"""
)


@pytest.mark.parametrize("source", ["user", "service_account"])
def test_impersonation_works_with_an_unpatched_google_auth(
    cloud: LocalCloud, source: Literal["user", "service_account"]
) -> None:
    """An impersonated ADC file yields, through the CONNECT proxy, an ID token that IAP accepts."""
    path = cloud.impersonated_file(source=source)
    script = IMPERSONATED_ID_TOKEN.replace("AUDIENCE", str(cloud.client_id))
    token = run(script, cloud.google_environment(), adc(path))["token"]
    assert status_at_iap(cloud, token) == 200
    assert cloud.requests[-1].account == cloud.trainer
    assert cloud.tokens[-1].source == "generateIdToken"


def test_federation_without_impersonation_can_impersonate(cloud: LocalCloud) -> None:
    """A federated workload gets a token from STS, with which it impersonates the trainer."""
    script = (
        FETCH
        + f"""
credentials = impersonated_credentials.Credentials(
    credentials, "{cloud.trainer}", ["{CLOUD_PLATFORM}"])
credentials = impersonated_credentials.IDTokenCredentials(
    credentials, target_audience="{cloud.client_id}", include_email=True)
credentials.refresh(request)
print(json.dumps({{"token": credentials.token}}))
"""
    )
    path = cloud.federation_file(impersonate=None)
    token = run(script, cloud.google_environment(), adc(path))["token"]
    assert status_at_iap(cloud, token) == 200
    assert [issued.source for issued in cloud.tokens] == ["sts", "generateIdToken"]


def test_federation_with_impersonation_yields_an_access_token(cloud: LocalCloud) -> None:
    """An external_account file with an impersonation URL yields the trainer's access token."""
    script = FETCH.replace(CLOUD_PLATFORM, "openid email") + (
        "credentials.refresh(request); print(json.dumps({'token': credentials.token}))"
    )
    script = script.replace('["openid email"]', '["openid", "email"]')
    token = run(script, cloud.google_environment(), adc(cloud.federation_file()))["token"]
    assert status_at_iap(cloud, token) == 200
    assert (cloud.requests[-1].account, cloud.requests[-1].token_kind) == (
        cloud.trainer,
        "access_token",
    )


def test_a_user_file_yields_an_access_token_and_an_id_token(cloud: LocalCloud) -> None:
    """gcloud's credentials refresh through the proxy, but IAP does not accept gcloud's client."""
    script = FETCH + (
        "credentials.refresh(request)\n"
        "print(json.dumps({'token': credentials.token, 'id': credentials.id_token}))"
    )
    tokens = run(script, cloud.google_environment(), adc(cloud.user_file()))
    assert status_at_iap(cloud, tokens["token"]) == 401
    assert status_at_iap(cloud, tokens["id"]) == 401
    assert jwt.decode(tokens["id"], verify=False)["email"] == cloud.user


def test_a_desktop_clients_id_token_passes_while_allowlisted(cloud: LocalCloud) -> None:
    """The refresh grant of a desktop client yields an ID token whose audience is that client."""
    script = """
import json, os
import google.auth.transport.requests
from google.oauth2.credentials import Credentials
credentials = Credentials.from_authorized_user_file(os.environ["GOOGLE_APPLICATION_CREDENTIALS"])
credentials.refresh(google.auth.transport.requests.Request())
print(json.dumps({"token": credentials.id_token}))
"""
    path = cloud.desktop_file()
    token = run(script, cloud.google_environment(), adc(path))["token"]
    assert status_at_iap(cloud, token) == 200
    cloud.programmatic_clients.clear()
    assert status_at_iap(cloud, token) == 401


def test_a_revoked_refresh_token_is_rejected(cloud: LocalCloud) -> None:
    """After revoke_refresh_tokens the grant fails with Google's text."""
    info = json.loads(cloud.user_file().read_text())
    cloud.revoke_refresh_tokens()
    answer = requests.post(
        f"{cloud.google_url}/token",
        data={**info, "grant_type": "refresh_token"},
        timeout=10,
    )
    assert answer.json() == {
        "error": "invalid_grant",
        "error_description": "Token has been expired or revoked.",
    }


VM = """
import json
import google.auth, google.auth.transport.requests
from google.oauth2 import id_token
request = google.auth.transport.requests.Request()
token = id_token.fetch_id_token(request, "AUDIENCE")
credentials, project = google.auth.default(scopes=["openid", "email"])
credentials.refresh(request)
print(json.dumps({"token": token, "project": project, "access": credentials.token,
    "universe": credentials.universe_domain, "email": credentials.service_account_email}))
"""


def test_a_virtual_machine_gets_its_tokens_from_the_metadata_server(cloud: LocalCloud) -> None:
    """google-auth finds the metadata server, and gets project, e-mail and both kinds of token."""
    found = run(VM.replace("AUDIENCE", str(cloud.client_id)), cloud.metadata_environment())
    assert (found["project"], found["email"]) == ("local-project", cloud.vm_account)
    assert found["universe"] == "googleapis.com"
    for token in (found["token"], found["access"]):
        assert status_at_iap(cloud, token) == 200
        assert cloud.requests[-1].account == cloud.vm_account


def test_the_metadata_server_requires_its_header(cloud: LocalCloud) -> None:
    """A request without Metadata-Flavor, such as a browser's, is rejected."""
    url = f"{cloud.google_url}/computeMetadata/v1/project/project-id"
    assert requests.get(url, timeout=10).status_code == 403
    answer = requests.get(url, headers={"Metadata-Flavor": "Google"}, timeout=10)
    assert (answer.text, answer.headers["Metadata-Flavor"]) == ("local-project", "Google")


def test_without_a_metadata_server_google_auth_finds_no_credentials(cloud: LocalCloud) -> None:
    script = """
import json
import google.auth.transport.requests
from google.auth.exceptions import DefaultCredentialsError
from google.oauth2 import id_token
try:
    id_token.fetch_id_token(google.auth.transport.requests.Request(), "x")
except DefaultCredentialsError as error:
    print(json.dumps({"error": str(error)}))
"""
    found = run(script, cloud.no_metadata_environment())
    assert "Neither metadata server or valid service account" in found["error"]


@pytest.mark.parametrize(
    ("method", "permission", "body"),
    [
        ("generateIdToken", "getOpenIdToken", {"audience": "x"}),
        ("generateAccessToken", "getAccessToken", {"scope": [CLOUD_PLATFORM]}),
        ("signJwt", "signJwt", {"payload": "{}"}),
        ("signBlob", "signBlob", {"payload": ""}),
    ],
)
def test_iam_credentials_requires_the_token_creator_role(
    cloud: LocalCloud, method: str, permission: str, body: object
) -> None:
    """Without the role, each method responds with 403 and names the missing permission."""
    assert call_iam(cloud, method, body).status_code == 200
    cloud.deny(cloud.trainer, on=cloud.trainer)
    denied = call_iam(cloud, method, body)
    assert denied.status_code == 403
    assert denied.json()["error"]["status"] == "PERMISSION_DENIED"
    assert denied.json()["error"]["message"] == (
        f"Permission 'iam.serviceAccounts.{permission}' denied on resource (or it may not exist)."
    )
    cloud.grant(cloud.trainer, to=cloud.trainer)
    assert call_iam(cloud, method, body).status_code == 200
    assert call_iam(cloud, method, body, token="").status_code == 401
    assert call_iam(cloud, method, body, token="ya29.unknown").status_code == 401


def test_sign_jwt_signs_the_given_payload(cloud: LocalCloud) -> None:
    """A JWT from signJwt passes IAP; claims for more than twelve hours are not signed."""
    now = int(time.time())
    claims = {
        "iss": cloud.trainer,
        "sub": cloud.trainer,
        "aud": f"{cloud.url}/*",
        "iat": now,
        "exp": now + 3600,
    }
    answer = call_iam(cloud, "signJwt", {"payload": json.dumps(claims)}).json()
    assert jwt.decode(answer["signedJwt"], verify=False) == claims
    assert jwt.decode_header(answer["signedJwt"])["kid"] == answer["keyId"]
    assert status_at_iap(cloud, answer["signedJwt"]) == 200
    too_long = json.dumps({**claims, "exp": now + 13 * 3600})
    assert call_iam(cloud, "signJwt", {"payload": too_long}).status_code == 400


def test_sign_blob_signs_with_the_accounts_key(cloud: LocalCloud) -> None:
    """The signature verifies with the account's published certificate."""
    payload = base64.b64encode(b"message").decode()
    answer = call_iam(cloud, "signBlob", {"payload": payload}).json()
    certificates = requests.get(
        f"{cloud.google_url}/robot/v1/metadata/x509/{cloud.trainer}", timeout=10
    ).json()
    signature = base64.b64decode(answer["signedBlob"])
    assert crypt.verify_signature(b"message", signature, certificates[answer["keyId"]])


def test_an_access_token_is_valid_no_longer_than_requested(cloud: LocalCloud) -> None:
    """generateAccessToken returns the end of the requested lifetime, by Google's clock."""
    body = {"scope": ["openid", "email"], "lifetime": "60s"}
    answer = call_iam(cloud, "generateAccessToken", body).json()
    assert answer["expireTime"].endswith("Z")
    assert status_at_iap(cloud, answer["accessToken"]) == 200
    cloud.clock_offset = 61.0
    assert status_at_iap(cloud, answer["accessToken"]) == 401


def test_an_unknown_endpoint_responds_with_404_in_json(cloud: LocalCloud) -> None:
    """google-auth makes such requests, and ignores their failure."""
    url = f"{cloud.google_url}/v1/projects/-/serviceAccounts/{cloud.trainer}/allowedLocations"
    answer = requests.get(url, timeout=10)
    assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND")


def test_the_proxy_connects_only_to_google(cloud: LocalCloud) -> None:
    """Google's host names are served over verified TLS; all others are rejected."""
    variables = cloud.google_environment()
    proxies = {"https": variables["HTTPS_PROXY"]}
    authority = variables["REQUESTS_CA_BUNDLE"]
    for host in ("oauth2.googleapis.com", "accounts.google.com", "www.gstatic.com"):
        answer = requests.get(f"https://{host}/x", proxies=proxies, verify=authority, timeout=10)
        assert answer.status_code == 404
    for url in ("https://example.com/", "https://googleapis.com.example.com/"):
        with pytest.raises(requests.exceptions.ProxyError, match="403 Forbidden"):
            requests.get(url, proxies=proxies, verify=authority, timeout=10)
    plain = requests.get(
        "http://example.com/", proxies={"http": variables["HTTPS_PROXY"]}, timeout=10
    )
    assert plain.status_code == 403


def test_key_files_are_readable_only_by_their_owner(cloud: LocalCloud, tmp_path: Path) -> None:
    """Key files have mode 0600 in a folder with mode 0700; a temporary folder is removed."""
    path = cloud.key_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    cloud.stop()
    assert not path.parent.exists()
    with LocalCloud(folder=tmp_path / "kept") as other:
        kept = other.user_file()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
