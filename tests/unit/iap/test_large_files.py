"""Large files, for servers that accept parts, whole files or neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

from mlflow_iap_callbacks.iap import large_files, mlflow_plugin
from mlflow_iap_callbacks.local import LocalCloud

_PATH = "/api/2.0/mlflow-artifacts/artifacts/0/run"


@pytest.fixture
def repository(echo: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> HttpArtifactRepository:
    """A run's artifacts, with parts from one byte on."""
    monkeypatch.setattr(mlflow_plugin, "_is_chosen_by_user", True)
    monkeypatch.setattr(large_files, "_is_default", False)  # as in a new process
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "1")
    return HttpArtifactRepository(f"{echo.url}{_PATH}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def is_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that this package enabled, and not the user."""
    monkeypatch.setattr(large_files, "_is_default", True)


def _calls(cloud: LocalCloud) -> list[tuple[str, str]]:
    return [(seen.method, seen.path) for seen in cloud.requests if seen.status not in (302, 401)]


@pytest.mark.parametrize("status", [400, 404, 500, 501])
def test_a_file_is_uploaded_whole_if_the_server_cannot_sign_urls(
    echo: LocalCloud, repository: HttpArtifactRepository, file: Path, status: int
) -> None:
    echo.fault("answer", status=status, path="mpu/create", times=0, body="cannot sign")
    repository.log_artifact(str(file))
    assert _calls(echo) == [
        ("POST", "/api/2.0/mlflow-artifacts/mpu/create/0/run"),
        ("PUT", f"{_PATH}/model.bin"),
    ]
    assert echo.requests[-1].body_bytes == 7


def test_a_server_that_does_not_say_it_accepts_parts_gets_the_whole_file(
    echo: LocalCloud, repository: HttpArtifactRepository, file: Path, is_default: None
) -> None:
    repository.log_artifact(str(file))
    assert _calls(echo) == [("GET", "/server-info"), ("PUT", f"{_PATH}/model.bin")]


def test_a_file_that_is_too_large_in_one_request_is_sent_in_parts(
    echo: LocalCloud,
    repository: HttpArtifactRepository,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Any] = []

    def send_parts(self: HttpArtifactRepository, *arguments: Any) -> None:
        sent.append((self.artifact_uri, *arguments))

    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    monkeypatch.setattr(HttpArtifactRepository, "_try_multipart_upload", send_parts)
    echo.fault("answer", status=413, method="PUT", times=0)
    repository.log_artifact(str(file))
    assert sent == [(f"{echo.url}{_PATH}", str(file))]


def test_the_error_for_a_file_that_is_accepted_in_no_form_names_the_variable(
    echo: LocalCloud, repository: HttpArtifactRepository, file: Path
) -> None:
    echo.fault("answer", status=500, path="mpu/create", times=0)
    echo.fault("answer", status=413, method="PUT", times=0)
    with pytest.raises((MlflowException, requests.HTTPError)) as caught:
        repository.log_artifact(str(file))
    assert "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD" in str(caught.value)


@pytest.mark.parametrize(("enabled", "is_sent"), [(True, True), (False, False), (None, False)])
def test_a_server_says_whether_it_accepts_parts(
    is_default: None, enabled: bool | None, is_sent: bool
) -> None:
    seen: list[str] = []

    def send(request: requests.PreparedRequest) -> requests.Response:
        seen.append(f"{request.method} {request.url}")
        response = requests.Response()
        response.status_code = 200
        info = {} if enabled is None else {"multipart_uploads_enabled": enabled}
        response._content = json.dumps(info).encode()
        return response

    base = "https://mlflow.example/prefix"
    request = requests.Request(
        "POST", f"{base}/api/2.0/mlflow-artifacts/mpu/create/0/run", json={}
    ).prepare()
    response = large_files.send_file(request, send)
    assert seen[0] == f"GET {base}/server-info"
    assert (len(seen) == 2) == is_sent
    assert response.status_code == (200 if is_sent else 501)
