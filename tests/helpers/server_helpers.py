"""A real MLflow server behind its gate and a local IAP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from mlflow_iap_callbacks.local import LocalCloud, MlflowServer
from ports import free_port
from tracking_server import TrackingServer

ASSERTION = "X-Goog-IAP-JWT-Assertion"


@contextmanager
def gated(
    folder: Path, workers: int = 1, **environment: str
) -> Iterator[tuple[LocalCloud, MlflowServer]]:
    """Run both, with further environment variables for the server."""
    port = free_port()
    with (
        LocalCloud(f"http://127.0.0.1:{port}") as cloud,
        TrackingServer(
            folder,
            port=port,
            app_name="iap",
            workers=workers,
            environment={**cloud.server_environment(), **environment},
        ) as server,
    ):
        yield cloud, server


def send(
    server: MlflowServer, assertion: str, method: str, path: str, **options: object
) -> requests.Response:
    """Send a request to the server itself, as IAP would."""
    headers = {ASSERTION: assertion, **options.pop("headers", {})}  # type: ignore[dict-item]
    return requests.request(
        method,
        server.url + path,
        headers=headers,
        timeout=30,
        **options,  # type: ignore[arg-type]
    )
