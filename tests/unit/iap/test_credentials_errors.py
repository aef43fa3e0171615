"""Errors about missing, broken and rejected credentials, which contain no secrets."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from credentials_helpers import KINDS, get, revoke_issued, run
from mlflow_iap_callbacks.errors import IAPConfigurationError, IAPCredentialsError
from mlflow_iap_callbacks.iap.credentials import IAPCredentials
from mlflow_iap_callbacks.iap.google_tokens import Kind
from mlflow_iap_callbacks.iap.retry_policy import RetryPolicy
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.local.certificates import tls_context

CLIENT = "123456789012-mlflow.apps.googleusercontent.com"
TRAINER = LocalCloud.trainer


@pytest.fixture
def cloud(google_cloud: LocalCloud) -> LocalCloud:
    return google_cloud


def refusal(credentials: IAPCredentials) -> IAPCredentialsError:
    with pytest.raises(IAPCredentialsError) as caught:
        credentials.token()
    return caught.value


def changed(file: Path, **values: object) -> Path:
    """A copy of a credentials file with other values; None removes one."""
    info = {**json.loads(file.read_text()), **values}
    copy = file.with_name(f"changed-{file.name}")
    copy.write_text(json.dumps({name: value for name, value in info.items() if value is not None}))
    return copy


# --- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"audience": ""}, "audience is empty"),
        ({"audience": "  "}, "audience is empty"),
        ({"impersonate": "trainer"}, "impersonate='trainer'"),
        ({"impersonate": ""}, "impersonate=''"),
        ({"kind": "jwt"}, "id_token, signed_jwt, access_token"),
    ],
)
def test_an_invalid_setting_is_rejected_at_once(arguments: dict[str, str], says: str) -> None:
    with pytest.raises(IAPConfigurationError, match=says):
        IAPCredentials(**arguments)  # type: ignore[arg-type]


def test_the_error_for_an_invalid_variable_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_IAP_IMPERSONATE", "trainer")
    with pytest.raises(IAPConfigurationError, match="MLFLOW_IAP_IMPERSONATE"):
        IAPCredentials()


_CONTENTS = {
    "JSON": '{"type": "service_account", "private_key": "S3cret"}',
    "lines of JSON": '{\n  "type": "service_account",\n  "private_key": "S3cret"\n}\n',
    "base64": base64.b64encode(b'{"private_key": "S3cret", "type": "service_account"}').decode(),
    "a key": "-----BEGIN PRIVATE KEY-----S3cret",
    "a token": "ya29.S3cret5678901234567890",
    "something long": "S3cret" * 100,
}


@pytest.mark.parametrize("contents", _CONTENTS.values(), ids=_CONTENTS)
def test_a_variable_that_holds_credentials_instead_of_a_path_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, contents: str
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", contents)
    error = refusal(IAPCredentials(CLIENT))
    assert "GOOGLE_APPLICATION_CREDENTIALS holds credentials themselves" in error.message
    assert contents[:20] not in error.message
    assert "S3cret" not in error.message


@pytest.mark.parametrize("contents", _CONTENTS.values(), ids=_CONTENTS)
@pytest.mark.parametrize("name", ["audience", "impersonate", "key_file", "kind"])
def test_an_argument_that_holds_credentials_is_rejected_and_not_shown(
    name: str, contents: str
) -> None:
    with pytest.raises(IAPConfigurationError) as caught:
        IAPCredentials(**{name: contents})  # type: ignore[arg-type]
    assert name in caught.value.message
    assert contents[:20] not in caught.value.message


@pytest.mark.parametrize("name", ["MLFLOW_IAP_CLIENT_ID", "MLFLOW_IAP_IMPERSONATE"])
def test_another_variable_that_holds_credentials_is_rejected_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, _CONTENTS["JSON"])
    with pytest.raises(IAPConfigurationError, match=name) as caught:
        IAPCredentials()
    assert "S3cret" not in caught.value.message


# --- files -----------------------------------------------------------------------------------

Make = Callable[[LocalCloud, Path], Path]


def _missing(cloud: LocalCloud, folder: Path) -> Path:
    return folder / "nowhere.json"


def _directory(cloud: LocalCloud, folder: Path) -> Path:
    return folder


def _text(text: bytes) -> Make:
    def write(cloud: LocalCloud, folder: Path) -> Path:
        file = folder / "credentials.json"
        file.write_bytes(text)
        return file

    return write


def _key_with(**values: object) -> Make:
    return lambda cloud, folder: changed(cloud.key_file(), **values)


def _impersonated_with(**values: object) -> Make:
    return lambda cloud, folder: changed(cloud.impersonated_file(), **values)


def _truncated_key(cloud: LocalCloud, folder: Path) -> Path:
    info = json.loads(cloud.key_file().read_text())
    return changed(cloud.key_file(), private_key=info["private_key"][:-200])


BAD_FILES: dict[str, tuple[Make, str]] = {
    "missing": (_missing, "No such file"),
    "a directory": (_directory, "Is a directory"),
    "not JSON": (_text(b"-----BEGIN"), "not JSON"),
    "not text": (_text(b"\xff\xfe\x00"), "not JSON"),
    "a list": (_text(b"[]"), "no 'type'"),
    "without type": (_text(b'{"installed": {"client_id": "1-a"}}'), "no 'type'"),
    "of an unknown type": (_text(b'{"type": "passport"}'), "passport"),
    "a key that is none": (_key_with(private_key="rubbish"), "is broken"),
    "a key cut off": (_truncated_key, "is broken"),
    "a key that is a number": (_key_with(private_key=7), "is broken"),
    "without a key": (_key_with(private_key=None), "is broken"),
    "without an e-mail": (_key_with(client_email=None), "client_email"),
    "impersonation without a source": (_impersonated_with(source_credentials=None), "is broken"),
    "impersonation by a text": (_impersonated_with(source_credentials="me"), "is broken"),
    "impersonation of nobody": (
        _impersonated_with(service_account_impersonation_url="https://x/"),
        "names no service account",
    ),
    "impersonation of a number": (
        _impersonated_with(service_account_impersonation_url=7),
        "is broken",
    ),
    "a user without a refresh token": (
        lambda cloud, folder: changed(cloud.user_file(), refresh_token=None),
        "refresh_token",
    ),
    "federation without a source": (
        lambda cloud, folder: changed(cloud.federation_file(), credential_source=None),
        "is broken",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_credentials_file_is_one_error_that_names_it_and_says_what_to_do(
    cloud: LocalCloud, tmp_path: Path, name: str
) -> None:
    make, says = BAD_FILES[name]
    file = make(cloud, tmp_path)
    error = refusal(IAPCredentials(CLIENT, key_file=file))
    message = error.message
    assert f"{file} (key_file)" in message
    assert says in message
    assert message.endswith((" search elsewhere.", " create a new one."))
    assert not error.transient
    assert not cloud.google_requests
    key = json.loads(cloud.key_file().read_text())["private_key"]
    assert key[100:140] not in text_of(error)


@pytest.mark.parametrize("name", ["missing", "without type", "a key that is none"])
def test_a_bad_file_that_the_environment_names_is_an_error_that_names_the_variable(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    file = BAD_FILES[name][0](cloud, tmp_path)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    error = refusal(IAPCredentials(CLIENT))
    assert f"{file} (GOOGLE_APPLICATION_CREDENTIALS)" in error.message


TELL = """
from mlflow_iap_callbacks.iap.credentials import IAPCredentials
from mlflow_iap_callbacks.errors import IAPCredentialsError
try:
    IAPCredentials("1-a").token()
except IAPCredentialsError as error:
    print(error.message, error.transient)
"""


@pytest.mark.slow  # google-auth's own pauses
def test_the_error_without_credentials_says_where_it_looked_and_what_to_set(
    cloud: LocalCloud, tmp_path: Path
) -> None:
    said = run(TELL, tmp_path, cloud.no_metadata_environment())
    for part in (
        "GOOGLE_APPLICATION_CREDENTIALS is not set",
        "no-gcloud/application_default_credentials.json",
        "no metadata server",
        "gcloud auth application-default login",
        "True",  # GCE_METADATA_HOST is set, so there may soon be a metadata server
    ):
        assert part in said


def test_a_machine_without_a_service_account_is_an_error_at_once(
    cloud: LocalCloud, tmp_path: Path
) -> None:
    cloud.fault("answer", path="/service-accounts/", where="google", status=404, times=0)
    said = run(TELL, tmp_path, cloud.metadata_environment())
    assert "metadata" in said
    assert "404" in said
    assert said.strip().endswith("False")


# --- rejected by Google ----------------------------------------------------------------------


def test_the_error_for_a_revoked_refresh_token_says_to_sign_in_again(cloud: LocalCloud) -> None:
    credentials = IAPCredentials(CLIENT, key_file=cloud.impersonated_file())
    cloud.revoke_refresh_tokens()
    error = refusal(credentials)
    assert "Token has been expired or revoked" in error.message
    assert "gcloud auth application-default login" in error.message
    assert not error.transient


def test_the_error_for_a_deleted_key_says_to_create_another(cloud: LocalCloud) -> None:
    deleted = cloud.key_file()
    cloud.delete_key()
    error = refusal(IAPCredentials(CLIENT, key_file=deleted))
    assert "Invalid JWT Signature" in error.message
    assert "create a new key file" in error.message
    assert not error.transient


@pytest.mark.parametrize("offset", [-7200.0, 7200.0])
def test_the_error_for_a_wrong_clock_names_the_clock(cloud: LocalCloud, offset: float) -> None:
    cloud.clock_offset = offset
    error = refusal(IAPCredentials(CLIENT, key_file=cloud.key_file()))
    assert "clock is off" in error.message
    assert "NTP" in error.message


def test_the_error_for_a_sign_in_without_the_scope_for_impersonation_names_the_scope(
    cloud: LocalCloud,
) -> None:
    error = refusal(IAPCredentials(CLIENT, impersonate=TRAINER, key_file=cloud.desktop_file()))
    assert "insufficient authentication scopes" in error.message
    assert "auth/cloud-platform" in error.message


def test_the_error_for_a_sign_in_without_openid_says_how_to_sign_in(cloud: LocalCloud) -> None:
    file = changed(cloud.desktop_file(), scopes=None)
    grant = cloud.mint.refresh_tokens[json.loads(file.read_text())["refresh_token"]]
    grant.scopes = frozenset({"https://www.googleapis.com/auth/userinfo.email"})
    error = refusal(IAPCredentials(key_file=file))
    assert "without the scope 'openid'" in error.message
    assert "--client-id-file" in error.message


@pytest.mark.parametrize(
    ("source", "path"),
    [
        (lambda cloud: cloud.key_file(), "/token"),  # google-auth's own retry succeeds for this one
        (lambda cloud: cloud.impersonated_file(), "generateIdToken"),
        (lambda cloud: cloud.federation_file(), "/v1/token"),
    ],
)
def test_a_busy_endpoint_is_retried_until_it_responds(
    cloud: LocalCloud, source: Callable[[LocalCloud], Path], path: str
) -> None:
    cloud.fault("answer", path=path, where="google", status=503, times=1)
    get(cloud.url, IAPCredentials(CLIENT, key_file=source(cloud))).raise_for_status()
    asked = [seen.status for seen in cloud.google_requests if path in seen.path]
    assert asked == [503, 200]


@pytest.mark.parametrize(
    ("file", "kind", "path"),
    [
        (lambda cloud: cloud.impersonated_file(), "id_token", "generateIdToken"),
        (lambda cloud: cloud.impersonated_file(), "signed_jwt", "signJwt"),
        (lambda cloud: cloud.impersonated_file(), "access_token", "generateAccessToken"),
        (lambda cloud: cloud.federation_file(), "id_token", "/v1/token"),
    ],
)
@pytest.mark.parametrize("body", [None, "<!DOCTYPE html><title>Error 502 (Server Error)</title>"])
def test_a_busy_endpoint_is_a_transient_error(
    cloud: LocalCloud,
    file: Callable[[LocalCloud], Path],
    kind: Kind,
    path: str,
    body: str | None,
) -> None:
    cloud.fault("answer", path=path, where="google", status=502, body=body, times=0)
    error = refusal(IAPCredentials(CLIENT, kind=kind, key_file=file(cloud)).for_origin(cloud.url))
    assert error.transient
    assert "<" not in error.message


@pytest.mark.slow  # google-auth's own pauses
def test_a_busy_token_endpoint_is_a_transient_error_that_the_caller_retries(
    cloud: LocalCloud,
) -> None:
    cloud.fault("answer", path="/token", where="google", status=503, times=0)
    with pytest.raises(IAPCredentialsError) as caught:
        get(
            cloud.url,
            IAPCredentials(CLIENT, key_file=cloud.key_file()),
            RetryPolicy(max_attempts=2, deadline=30.0),
        )
    assert caught.value.transient


def test_an_endpoint_that_refuses_connections_is_a_transient_error(cloud: LocalCloud) -> None:
    refusing = cloud.no_metadata_environment()["GCE_METADATA_HOST"]
    file = changed(cloud.key_file(), token_uri=f"http://{refusing}/token")
    error = refusal(IAPCredentials(CLIENT, key_file=file))
    assert error.transient
    assert refusing.partition(":")[2] in error.message
    assert "HTTPS_PROXY" in error.message


def test_an_untrusted_certificate_is_not_a_transient_error(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, another = tls_context(tmp_path, ("*.googleapis.com",))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(another))
    error = refusal(IAPCredentials(CLIENT, key_file=cloud.impersonated_file()))
    assert not error.transient
    assert "REQUESTS_CA_BUNDLE" in error.message


# --- secrets ---------------------------------------------------------------------------------

# The form of all tokens, refresh tokens and keys of the local cloud.
SECRET = re.compile(
    r"ya29\.local-[\w-]{8}|1//local-[\w-]{8}|eyJ[\w-]{16,}\.eyJ[\w-]{16,}|PRIVATE KEY"
)


def text_of(error: BaseException) -> str:
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return "".join(lines) + repr(error) + repr(error.args) + pickle.dumps(error).decode("latin-1")


class Everything(logging.Handler):
    """Keeps everything in each log record."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.getMessage()} {record.__dict__!r}")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Everything that is logged; google-auth sometimes hides its records from the root logger."""
    handler = Everything()
    loggers = [logging.getLogger(name) for name in ("", "google", "google.auth", "urllib3")]
    for logger in loggers:
        caplog.set_level(logging.DEBUG, logger=logger.name if logger.name != "root" else None)
        logger.addHandler(handler)
    yield handler.texts
    for logger in loggers:
        logger.removeHandler(handler)


QUIET: dict[str, Callable[[LocalCloud], Path]] = {
    "key": lambda cloud: cloud.key_file(),
    "user": lambda cloud: cloud.impersonated_file(),
    "federation": lambda cloud: cloud.federation_file(),
    "desktop": lambda cloud: cloud.desktop_file(),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if name == "key" else pytest.mark.slow)
        for name in QUIET
        for kind in KINDS
        if (name, kind) != ("desktop", "signed_jwt")  # a person has no key to sign with
    ],
)
def test_no_token_and_no_key_is_in_any_log_description_or_pickle(
    cloud: LocalCloud, logged: list[str], name: str, kind: Kind
) -> None:
    audience = None if name == "desktop" else CLIENT
    file = QUIET[name](cloud)
    credentials = IAPCredentials(audience, kind=kind, key_file=file)
    bound = credentials.for_origin(cloud.url)
    token = bound.token()
    get(cloud.url, bound).raise_for_status()
    cloud.revoke_tokens() if kind == "signed_jwt" else revoke_issued(cloud)
    assert get(cloud.url, bound).status_code == 200
    assert SECRET.search(token)

    shown = "\n".join(
        [
            *logged,
            *(repr(bound), str(bound), str(bound.describe()), repr(vars(bound))),
            *(pickle.dumps(each).decode("latin-1") for each in (credentials, bound)),
        ]
    )
    assert "urllib3" in shown  # at least something was logged
    assert token not in shown
    assert not SECRET.search(shown)


def test_google_auth_s_log_records_from_other_libraries_are_kept(
    cloud: LocalCloud, logged: list[str]
) -> None:
    IAPCredentials(CLIENT, key_file=cloud.key_file()).token()
    logging.getLogger("google.auth.transport.requests").debug(
        "Making request...", extra={"httpRequest": {"url": "theirs"}}
    )
    assert [text for text in logged if "theirs" in text]


MALFORMED = [
    '{"id_token": "%s", "token": "%s", "signedJwt": "%s", "access_token": "%s"}',
    '{"id_token": "%s.x.y", "accessToken": "%s", "expireTime": "soon", "expires_in": "%s"}',
    '{"id_token": null, "token": null, "signedJwt": null, "access_token": null}',
    '{"id_token": 7, "token": 7, "signedJwt": 7, "access_token": 7, "expires_in": []}',
    '{"surprise": "%s"}',
    '{"error": "%s"}',
    '{"error": {"message": "%s", "code": 400}}',
    '{"error": ["%s"]}',
    '["%s"]',
    '"%s"',
    "%s",
    "<html>%s</html>",
    "",
]
CASES: dict[str, tuple[Callable[[LocalCloud], Path], Kind, str]] = {
    "ID token by key": (lambda cloud: cloud.key_file(), "id_token", "/token"),
    "access token by key": (lambda cloud: cloud.key_file(), "access_token", "/token"),
    "generateIdToken": (lambda cloud: cloud.impersonated_file(), "id_token", "generateIdToken"),
    "signJwt": (lambda cloud: cloud.impersonated_file(), "signed_jwt", "signJwt"),
    "generateAccessToken": (
        lambda cloud: cloud.impersonated_file(),
        "access_token",
        "generateAccessToken",
    ),
    "a user's refresh": (lambda cloud: cloud.impersonated_file(), "id_token", "/token"),
    "a desktop client's refresh": (lambda cloud: cloud.desktop_file(), "id_token", "/token"),
    "federation": (lambda cloud: cloud.federation_file(), "id_token", "/v1/token"),
}
# The others get their responses from the same endpoints, or wait longer.
QUICK = ("ID token by key", "access token by key", "federation")


def token_or_error(credentials: IAPCredentials) -> str | IAPCredentialsError:
    try:
        return credentials.token()
    except IAPCredentialsError as error:
        return error


@pytest.mark.parametrize("status", [200, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES],
)
def test_a_malformed_response_is_one_error_that_shows_no_token_from_it(
    cloud: LocalCloud, logged: list[str], name: str, status: int
) -> None:
    make, kind, path = CASES[name]
    file = make(cloud)
    secret_kind: Kind = "id_token" if status == 200 and kind != "access_token" else "access_token"
    secret = IAPCredentials(CLIENT, kind=secret_kind, key_file=cloud.key_file()).token()
    secret = ".".join(secret.split(".")[:2])  # a JWT without its signature is not a token
    audience = None if "desktop" in name else CLIENT
    for pattern in MALFORMED:
        body = pattern.replace("%s", secret)
        cloud.clear_faults()
        cloud.fault("answer", path=path, where="google", status=status, body=body, times=0)
        credentials = IAPCredentials(audience, kind=kind, key_file=file)
        got = token_or_error(credentials.for_origin(cloud.url))
        if isinstance(got, str):
            # Any text in the right place is taken for a token.
            assert status == 200, body
            assert got.startswith(secret), body
            continue
        shown = text_of(got)
        assert secret not in shown
        assert not SECRET.search(shown)
        assert len(got.message) < 800
    assert not SECRET.search("\n".join(logged))
