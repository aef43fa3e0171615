"""Uploads of large files: whole, or in parts straight to the bucket where the server can do that.

App Engine and Cloud Run accept requests of up to 32 MB. Many other servers accept any size, and
cannot sign the URLs for parts.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from io import BytesIO

import requests
from urllib3 import HTTPResponse

_logger = logging.getLogger("mlflow_iap_callbacks")

# Bytes; MLflow's default is 500 MB.
_MINIMUM = 32_000_000
_CREATE = "/mlflow-artifacts/mpu/create/"
_FILES = "/mlflow-artifacts/artifacts/"
_is_default = False  # whether parts are enabled by this module, and not by the user

Send = Callable[[requests.PreparedRequest], requests.Response]


def prepare_mlflow() -> None:
    """Let MLflow upload large files in parts, unless a variable or the server disables it."""
    global _is_default
    from mlflow import environment_variables as env
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    if not env.MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE.is_set():
        env.MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE.set(_MINIMUM)
    # Recent versions of MLflow ask the server themselves.
    is_asking = hasattr(MlflowArtifactsRepository, "_is_multipart_upload_enabled")
    if not is_asking and not env.MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD.is_set():
        _is_default = True
        env.MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD.set(True)


def send_file(request: requests.PreparedRequest, send: Send) -> requests.Response:
    """Send a request; if a file is not accepted in one form, let MLflow try the other one."""
    url, body = request.url or "", request.body
    if request.method == "POST" and _CREATE in url:
        return _begin_parts(request, send)
    response = send(request)
    path = getattr(body, "name", None)
    if response.status_code == 413 and _FILES in url and isinstance(path, str):
        _send_parts(url, path, response)
    return response


def _begin_parts(request: requests.PreparedRequest, send: Send) -> requests.Response:
    if not _is_default or _can_sign(request, send):
        response = send(request)
        if response.status_code < 400:
            return response
        _logger.warning(
            "The server cannot accept a file in parts (%d: %.300s); the file is uploaded in one "
            "request. Set MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=false to always do so.",
            response.status_code,
            response.text,
        )
    return _unsupported(request)


def _can_sign(request: requests.PreparedRequest, send: Send) -> bool:
    """Whether the server says that it accepts parts; servers before MLflow 3.17 say nothing."""
    info = request.copy()
    info.method, info.body = "GET", None
    info.headers.pop("Content-Length", None)
    info.url = (request.url or "").partition("/api/")[0] + "/server-info"
    try:
        return bool(send(info).json().get("multipart_uploads_enabled"))
    except (ValueError, AttributeError):
        return False


def _unsupported(request: requests.PreparedRequest) -> requests.Response:
    """The response after which MLflow uploads the whole file in one request."""
    from mlflow.exceptions import _UnsupportedMultipartUploadException

    response = requests.Response()
    response.status_code, response.request, response.url = 501, request, request.url or ""
    message = _UnsupportedMultipartUploadException.MESSAGE
    response._content = json.dumps({"message": message}).encode()
    response.raw = HTTPResponse(BytesIO(response._content), preload_content=False)
    return response


def _send_parts(url: str, path: str, response: requests.Response) -> None:
    """Upload a file in parts after it was rejected as too large; the response becomes a 200."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    folder, _, name = url.rpartition("/")
    try:
        if name != os.path.basename(path):
            raise MlflowException(f"{path} has another name on the server")
        HttpArtifactRepository(folder)._try_multipart_upload(path)
    except (MlflowException, requests.RequestException, OSError) as error:
        response._content = (
            f"The server, or a proxy before it, accepts no file of {os.path.getsize(path):,} bytes "
            f"in one request, and none in parts: {error}. Raise its limit, or use a server that "
            "signs URLs (MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=true)."
        ).encode()
    else:
        response.status_code, response._content = 200, b"{}"
