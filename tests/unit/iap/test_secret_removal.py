"""No token, key or password leaves this package with an error, however it travels."""

from __future__ import annotations

import io
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import cloudpickle
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from tblib import pickling_support

from mlflow_iap_callbacks import IAPCredentials, IAPCredentialsError, IAPMlflowClient
from mlflow_iap_callbacks.iap.auth import IAPAuth
from mlflow_iap_callbacks.iap.secret_removal import Bearer, remove_secrets
from mlflow_iap_callbacks.iap.unwrapping import unwrapped_errors
from mlflow_iap_callbacks.local import LocalCloud

_PASSWORD = "S3cretPw"


class _DaskPickler(pickle.Pickler):
    """Pickles an exception with its traceback and what led to it, as Dask's workers do."""

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, BaseException):
            return pickling_support.pickle_exception(obj)
        if isinstance(obj, TracebackType):
            return pickling_support.pickle_traceback(obj)
        return NotImplemented


def _dask_pickle(error: BaseException) -> bytes:
    file = io.BytesIO()
    _DaskPickler(file).dump(error)
    return file.getvalue()


def _printed(error: BaseException) -> bytes:
    return "".join(traceback.format_exception(error)).encode()


def _with_locals(error: BaseException) -> bytes:
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(shown.format()).encode()


def _logged(error: BaseException) -> bytes:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("mlflow_iap_callbacks").addHandler(handler)
    try:
        logging.getLogger("mlflow_iap_callbacks").error("It failed: %s", error, exc_info=error)
    finally:
        logging.getLogger("mlflow_iap_callbacks").removeHandler(handler)
    return stream.getvalue().encode()


_WAYS = (pickle.dumps, cloudpickle.dumps, _dask_pickle, _printed, _with_locals, _logged)


def _raised(calls: list[Callable[[], object]]) -> Exception | None:
    """The last error of the calls, each of which is made while the one before it is handled."""

    def call_each(index: int) -> None:
        try:
            calls[index]()
        except Exception:
            if index + 1 < len(calls):
                call_each(index + 1)
            raise
        if index + 1 < len(calls):
            call_each(index + 1)

    try:
        call_each(0)
    except Exception as error:  # noqa: BLE001
        return error
    return None


def _secrets(cloud: LocalCloud, client: IAPMlflowClient) -> list[bytes]:
    key = json.loads(cloud.key_file().read_text())["private_key"].splitlines()[1]
    assert client._auth is not None
    return [part.encode() for part in (client._auth.credentials.token(), key, _PASSWORD)]


# The operations of the client, and what goes wrong in each.
_CALLS: dict[str, Callable[[IAPMlflowClient, Path], object]] = {
    "search": lambda client, _: client.search_experiments(),
    "create": lambda client, _: client.create_registered_model("m"),
    "list": lambda client, _: _artifacts(client, "list_artifacts"),
    "upload": lambda client, file: _artifacts(client, "log_artifact", str(file)),
    "download": lambda client, file: _artifacts(
        client, "download_artifacts", "a", str(file.parent)
    ),
}
_FAULTS: list[dict[str, Any]] = [
    {"kind": "reset_before"},
    {"kind": "reset_after"},
    *({"kind": "answer", "status": status} for status in (400, 404, 500, 503)),
    {"kind": "answer", "status": 403, "from_iap": True, "body": "App: Access denied."},
    {"kind": "answer", "status": 401, "from_iap": True, "body": "JWT signature is invalid"},
]


@pytest.fixture
def client(echo: LocalCloud) -> IAPMlflowClient:
    """A client whose tracking URI has a password, and that has a token."""
    client = IAPMlflowClient(
        echo.url.replace("://", f"://ada:{_PASSWORD}@"), deadline=1.0, max_attempts=1
    )
    client.search_experiments()
    return client


def _artifacts(client: IAPMlflowClient, method: str, *arguments: str) -> object:
    """Call a method for the artifacts of a run as the client's methods do."""
    with unwrapped_errors():
        return getattr(
            HttpArtifactRepository(f"{client.tracking_uri}/api/2.0/mlflow-artifacts/artifacts/r"),
            method,
        )(*arguments)


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(_CALLS)), st.sampled_from(_FAULTS)),
        min_size=1,
        max_size=4,
    )
)
def test_no_sequence_of_errors_shows_a_token_a_key_or_a_password(
    echo: LocalCloud,
    client: IAPMlflowClient,
    tmp_path: Path,
    steps: list[tuple[str, dict[str, Any]]],
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"content")

    def call(name: str, fault: dict[str, Any]) -> None:
        echo.clear_faults()
        echo.fault(times=0, **fault)
        _CALLS[name](client, file)

    error = _raised([lambda step=step: call(*step) for step in steps])  # type: ignore[misc]
    echo.clear_faults()
    assert error is not None
    secrets = _secrets(echo, client)
    for way in _WAYS:
        shown = way(error)
        assert not [secret for secret in secrets if secret in shown], way


def test_an_error_with_a_response_can_be_pickled_and_says_what_was_requested(
    echo: LocalCloud, client: IAPMlflowClient
) -> None:
    echo.fault("answer", status=404, body="nothing here", times=0)
    error = _raised([lambda: _artifacts(client, "list_artifacts")])
    assert isinstance(error, requests.HTTPError)
    copy = pickle.loads(pickle.dumps(error))
    assert copy.response.text == "nothing here"
    assert copy.response.request.method == "GET"
    assert "Proxy-Authorization" not in copy.response.request.headers
    assert not copy.response.request.hooks["response"]


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_a_lost_stream_can_be_pickled(echo: LocalCloud, kind: Any) -> None:
    auth = IAPAuth(echo.url)
    with auth.session() as session:
        session.get(echo.url)
        echo.fault(kind, times=0)

        def upload() -> None:
            session.post(f"{echo.url}/a", data=io.BytesIO(b"content"))

        error = _raised([upload])
    assert auth.credentials.token().encode() not in pickle.dumps(error)


def test_a_caller_s_own_request_never_holds_a_token(echo: LocalCloud) -> None:
    auth = IAPAuth(echo.url)
    with auth.session() as session:
        for _ in range(2):
            request = session.prepare_request(requests.Request("GET", echo.url))
            response = session.send(request)
            assert "Authorization" not in {**request.headers, **response.request.headers}


def test_a_plain_session_s_response_holds_no_token(echo: LocalCloud) -> None:
    auth = IAPAuth(echo.url)
    for _ in range(2):
        response = requests.get(echo.url, auth=auth)
        assert auth.credentials.token().encode() not in pickle.dumps(response)


def test_a_bearer_header_is_sent_as_it_is_and_shown_to_nobody() -> None:
    bearer = Bearer("Bearer abc")
    assert bearer.encode() == b"Bearer abc"
    assert bearer.token == "abc"
    assert "abc" not in repr({"Authorization": bearer})
    assert b"abc" not in pickle.dumps(bearer) + cloudpickle.dumps(bearer)


def test_an_error_of_the_credentials_shows_no_key(cloud: LocalCloud) -> None:
    info = json.loads(cloud.key_file().read_text())
    info["client_email"] = 7
    file = cloud.key_file().with_name("broken.json")
    file.write_text(json.dumps(info))
    for credentials in (
        IAPCredentials("1-a", key_file=file),
        IAPCredentials("1-a", key_file=cloud.user_file()),
    ):
        error = _raised([credentials.token])
        assert isinstance(error, IAPCredentialsError)
        key = info["private_key"].splitlines()[1]
        for way in _WAYS:
            assert key.encode() not in way(error)
            assert b"refresh_token" not in way(error)


@pytest.fixture
def cloud(google_cloud: LocalCloud) -> LocalCloud:
    return google_cloud


def test_the_frames_of_an_error_that_the_caller_handles_keep_their_variables() -> None:
    def fail() -> None:
        kept = "a variable"  # noqa: F841
        raise ValueError

    try:
        fail()
    except ValueError as handled:
        try:
            raise KeyError
        except KeyError as error:
            remove_secrets(error, handled)
        shown = _with_locals(handled)
    assert b"a variable" in shown
