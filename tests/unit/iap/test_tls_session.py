"""Sessions use MLflow's variables for TLS, with a server whose certificate nobody trusts."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from bare_server import BareServer
from mlflow_iap_callbacks import IAPAuth, IAPConfigurationError
from mlflow_iap_callbacks.iap.proxy import IAPProxy
from mlflow_iap_callbacks.iap.tls_session import TLSSession
from mlflow_iap_callbacks.local.certificates import tls_context

_CA, _CLIENT = "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH"
_INSECURE = "MLFLOW_TRACKING_INSECURE_TLS"


@pytest.fixture
def context(tmp_path: Path) -> ssl.SSLContext:
    return tls_context(tmp_path, ("localhost",))[0]


@pytest.fixture
def url(context: ssl.SSLContext) -> Iterator[str]:
    with BareServer(context) as server:
        yield server.url.replace("127.0.0.1", "localhost")


def _get(url: str, **arguments: object) -> str:
    with TLSSession() as session:
        return str(session.get(url, timeout=30, **arguments).text)  # type: ignore[arg-type]


def test_a_certificate_is_trusted_if_mlflows_variable_names_its_authority(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        _get(url)
    monkeypatch.setenv(_CA, str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "other.pem"))
    assert _get(url) == "hello"


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_no_certificate_is_checked_if_mlflows_variable_says_so_and_the_request_does_not(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(_INSECURE, "true")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "other.pem"))
    assert _get(url) == "hello"
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(requests.exceptions.SSLError):
        _get(url, verify=True)


def test_a_server_gets_the_certificate_of_the_client(
    url: str, context: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.load_verify_locations(tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    monkeypatch.setenv(_CA, str(tmp_path / "ca.pem"))
    with pytest.raises(requests.ConnectionError):
        _get(url)
    monkeypatch.setenv(_CLIENT, str(tmp_path / "server.pem"))
    assert _get(url) == "hello"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({_CA: "/none.pem"}, f"{_CA} names '/none.pem', which does not exist"),
        ({_CLIENT: "/none.pem"}, f"{_CLIENT} names '/none.pem', which does not exist"),
        ({_CA: "/none.pem", _INSECURE: "true"}, "are both set"),
    ],
)
def test_variables_that_cannot_work_are_an_error_before_any_request(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with (
        IAPAuth("https://localhost:1").session() as session,
        pytest.raises(IAPConfigurationError, match=says),
    ):
        session.get("https://localhost:1")
    with pytest.raises(IAPConfigurationError, match=says):
        IAPProxy(IAPAuth("https://localhost:1"), "secret")
