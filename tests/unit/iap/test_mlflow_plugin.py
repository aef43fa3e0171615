"""MLflow's entry point: which requests get a token, and what it sets in this process."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from typing import Any

import mlflow
import pytest
import requests
from mlflow import environment_variables as env
from mlflow.utils import request_utils

from mlflow_iap_callbacks import IAPConfigurationError, IAPCredentials, IAPMlflowClient
from mlflow_iap_callbacks.iap import mlflow_plugin
from mlflow_iap_callbacks.iap.auth import IAPAuth
from mlflow_iap_callbacks.iap.mlflow_plugin import IAPRequestAuthProvider, auth_for, choose
from mlflow_iap_callbacks.iap.retry_policy import RetryPolicy
from mlflow_iap_callbacks.iap.transport import IAPTransport

_URI = "https://mlflow.example"
_OTHER = "https://other.example"


@pytest.fixture(autouse=True)
def _forget_tracking_uris() -> Iterator[None]:
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]


def _is_authenticated(url: str) -> bool:
    """Whether MLflow's request to ``url`` is authenticated if IAP asks for a token."""
    auth = IAPRequestAuthProvider().get_auth()
    request = requests.Request("GET", url, auth=auth).prepare()
    return any(isinstance(hook.__self__, IAPAuth) for hook in _hooks(request))


def _hooks(request: requests.PreparedRequest) -> list[Any]:
    return [hook for hook in request.hooks["response"] if hasattr(hook, "__self__")]


# --- which servers ---------------------------------------------------------------------------


def test_requests_to_mlflow_s_uris_are_authenticated_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "iap")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _URI)
    mlflow.set_registry_uri("https://registry.example/path")
    assert _is_authenticated(f"{_URI}/api/2.0/mlflow/runs/get")
    assert _is_authenticated("https://registry.example/path/api")
    assert not _is_authenticated(f"{_OTHER}/api")
    assert not _is_authenticated("https://mlflow.example.evil.example/api")
    assert not _is_authenticated("https://registry.exam/api")
    assert not _is_authenticated("http://mlflow.example/api")


def test_requests_to_a_client_s_server_are_authenticated_no_matter_what_mlflow_s_uri_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.internal:5000")
    IAPMlflowClient(_OTHER)
    assert os.environ["MLFLOW_TRACKING_AUTH"] == "iap"
    assert _is_authenticated(f"{_OTHER}/api")


def test_mlflow_s_uri_is_not_affected_by_a_client_for_another_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.internal:5000")
    monkeypatch.setattr(mlflow_plugin, "_is_chosen_by_user", True)
    IAPMlflowClient(_OTHER)
    assert not _is_authenticated("http://mlflow.internal:5000/api")


def _redirected(url: str, status: int, **headers: str) -> None:
    """Give MLflow's request to ``url`` a response."""
    auth = IAPRequestAuthProvider().get_auth()
    request = requests.Request("GET", url, auth=auth).prepare()
    response = requests.Response()
    response.status_code, response.url, response._content = status, url, b"{}"
    response.headers.update(headers)
    requests.hooks.dispatch_hook("response", request.hooks, response)


def test_another_server_in_plain_http_is_an_error_only_if_it_asks_for_a_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "http://mlflow.internal:5000/api/2.0/mlflow/runs/get"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.internal:5000")
    monkeypatch.setattr(mlflow_plugin, "_is_chosen_by_user", True)
    _redirected(url, 200)
    with pytest.raises(IAPConfigurationError, match="plain text"):
        _redirected(url, 302, Location="https://accounts.google.com/o/oauth2/v2/auth")


@pytest.mark.parametrize("tracking_uri", [None, "https://unrelated.example"])
def test_a_server_that_the_user_names_to_mlflow_s_own_client_is_authenticated(
    monkeypatch: pytest.MonkeyPatch, tracking_uri: str | None
) -> None:
    monkeypatch.setattr(mlflow_plugin, "_is_chosen_by_user", True)
    if tracking_uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    assert not _is_authenticated(f"{_OTHER}/api/2.0/mlflow-artifacts/artifacts")
    assert _is_authenticated(f"{_OTHER}/api/2.0/mlflow/experiments/search")
    assert _is_authenticated(f"{_OTHER}/api/2.0/mlflow-artifacts/artifacts")


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (302, {"Location": "https://accounts.google.com/o/oauth2/v2/auth?client_id=1"}),
        (303, {"Location": "https://accounts.google.com/v3/signin"}),
        (307, {"Location": "https://elsewhere", "X-Goog-IAP-Generated-Response": "true"}),
        (401, {"X-Goog-IAP-Generated-Response": "true"}),
    ],
)
def test_the_sign_in_page_of_any_other_server_is_an_error_that_says_what_to_set(
    status: int, headers: dict[str, str]
) -> None:
    with pytest.raises(IAPConfigurationError, match=f"MLFLOW_TRACKING_URI={_OTHER} "):
        _redirected(f"{_OTHER}/api/2.0/mlflow-artifacts/artifacts", status, **headers)
    _redirected(f"{_OTHER}/a", 302, Location="https://storage.googleapis.com/signed")


def test_a_scheme_and_a_host_may_be_in_upper_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "HTTPS://MLFLOW.Example")
    assert _is_authenticated(f"{_URI}/api/2.0/mlflow-artifacts/artifacts")
    assert isinstance(_mlflow_session().get_adapter(f"{_URI}/api"), IAPTransport)


# --- one authentication per server -----------------------------------------------------------


def test_an_address_in_upper_case_or_with_a_path_is_the_same_server() -> None:
    assert auth_for(_URI) is auth_for("https://MLflow.example:443/path/")


def test_the_settings_given_last_apply_and_omitted_ones_change_nothing() -> None:
    auth = auth_for(_URI, IAPCredentials("1-a"), RetryPolicy(2))
    auth_for(_URI)
    assert auth.credentials.is_like(IAPCredentials("1-a").for_origin(_URI))
    assert auth.retry == RetryPolicy(2)
    auth_for(_URI, IAPCredentials("2-b"), RetryPolicy(3))
    assert auth.credentials.is_like(IAPCredentials("2-b").for_origin(_URI))
    assert auth.retry == RetryPolicy(3)


def test_credentials_that_are_given_again_keep_their_token() -> None:
    auth = auth_for(_URI, IAPCredentials("1-a"))
    before = auth.credentials
    auth_for(_URI, IAPCredentials("1-a"))
    assert auth.credentials is before


def test_credentials_from_the_environment_change_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    auth = auth_for(_URI)
    monkeypatch.setenv("MLFLOW_IAP_CLIENT_ID", "1-a")
    auth_for(_URI)
    assert auth.credentials.is_like(IAPCredentials("1-a").for_origin(_URI))


# --- whose client id -------------------------------------------------------------------------


def _audience(uri: str) -> str | None:
    return auth_for(uri).credentials._configuration.audience


@pytest.mark.parametrize("variable", ["MLFLOW_IAP_CLIENT_ID", "MLFLOW_OAUTH2_CLIENT_ID"])
def test_another_server_gets_no_id_token_for_the_client_id_of_mlflow_s_server(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{_URI}/path")
    monkeypatch.setenv(variable, "1-a")
    assert _audience(_OTHER) is None
    assert _audience(_URI) == "1-a"


def test_the_client_id_stays_with_its_server_if_the_program_changes_mlflow_s_uri(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _URI)
    monkeypatch.setenv("MLFLOW_IAP_CLIENT_ID", "1-a")
    assert _audience(_URI) == "1-a"
    mlflow.set_tracking_uri(_OTHER)
    assert _audience(_OTHER) is None
    assert _audience(_URI) == "1-a"


def test_without_mlflow_s_uri_the_client_id_is_for_the_first_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_IAP_CLIENT_ID", "1-a")
    assert _audience(_URI) == "1-a"
    assert _audience(_OTHER) is None


def test_a_client_id_that_a_program_gives_is_for_the_server_it_is_given_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _URI)
    credentials = IAPCredentials("1-a")
    assert auth_for(_OTHER, credentials).credentials._configuration.audience == "1-a"
    assert _audience(_URI) is None


def test_pickled_credentials_remember_whose_client_id_they_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _URI)
    monkeypatch.setenv("MLFLOW_IAP_CLIENT_ID", "1-a")
    pickled = pickle.dumps(IAPCredentials())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _OTHER)
    credentials = pickle.loads(pickled)
    assert credentials.for_origin(_OTHER)._configuration.audience is None
    assert credentials.for_origin(_URI)._configuration.audience == "1-a"


# --- what it sets ----------------------------------------------------------------------------


def test_iap_is_chosen_by_default_and_another_choice_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mlflow_plugin, "_is_chosen_by_user", True)
    choose()
    choose()
    assert os.environ["MLFLOW_TRACKING_AUTH"] == "iap"
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "kubernetes")
    with pytest.raises(IAPConfigurationError, match="'kubernetes'"):
        choose()


def test_large_files_are_sent_in_parts_unless_a_variable_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    IAPRequestAuthProvider().get_auth()
    assert env.MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD.get() is False
    assert env.MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE.get() == 32_000_000


def test_mlflow_s_session_has_a_separate_transport_for_each_server() -> None:
    auth_for(_URI)
    auth_for("https://MLflow.Example:443/path")
    session = _mlflow_session()
    assert not [each for each in session.adapters.values() if isinstance(each, IAPTransport)]
    IAPRequestAuthProvider().get_auth()
    for url in (f"{_URI}/api", "https://mlflow.example:443/api"):
        assert isinstance(session.get_adapter(url), IAPTransport)
    for url in (f"{_OTHER}/api", "https://mlflow.example.evil.example/api"):
        assert not isinstance(session.get_adapter(url), IAPTransport)
    adapters = dict(session.adapters)
    IAPRequestAuthProvider().get_auth()
    assert session.adapters == adapters


def _mlflow_session() -> requests.Session:
    """The session with which MLflow sends its requests."""
    session: requests.Session = request_utils._get_request_session(
        env.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(),
        env.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get(),
        env.MLFLOW_HTTP_REQUEST_BACKOFF_JITTER.get(),
        request_utils._TRANSIENT_FAILURE_RESPONSE_CODES,
        True,
        env.MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER.get(),
    )
    return session
