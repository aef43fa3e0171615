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


def spans(
    trace: str, *, name: str = "step", span: int = 1, parent: int = 0, **attributes: str
) -> dict[str, object]:
    """Return the body of a request that sends one span by OpenTelemetry's protocol.

    Args:
        trace: 32 hexadecimal digits.
        name: the span's name.
        span: the span's number.
        parent: the number of the span that it belongs to; 0 for the root of the trace.
        **attributes: its attributes.
    """
    content = {
        **{"traceId": trace, "spanId": f"{span:016x}", "name": name, "kind": 1},
        **({"parentSpanId": f"{parent:016x}"} if parent else {}),
        **{"startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000000000000009"},
        "attributes": [
            {"key": key, "value": {"stringValue": value}} for key, value in attributes.items()
        ],
    }
    return {"resourceSpans": [{"scopeSpans": [{"spans": [content]}]}]}
