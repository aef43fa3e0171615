"""Webhooks, which an administrator allows for some hosts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from asgi import Answer, Recorder, call
from mlflow_iap_callbacks.server.body_middleware import BodyMiddleware
from mlflow_iap_callbacks.server.gate import visitor
from mlflow_iap_callbacks.server.gate_settings import GateSettings
from mlflow_iap_callbacks.server.start_error import StartError

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")


def _answer(url: Any, method: str = "POST", path: str = "/api/2.0/mlflow/webhooks") -> Answer:
    middleware = BodyMiddleware(Recorder(), webhook_hosts=["hooks.example.com"])

    async def ask() -> Answer:
        visitor.set("ada@example.com")
        return await call(middleware, path, method, {}, json.dumps({"url": url}).encode())

    return asyncio.run(ask())


def _status(url: Any, *where: str) -> int:
    return _answer(url, *where).status


@pytest.mark.parametrize(
    "url", ["https://hooks.example.com", "https://HOOKS.example.com:443/services/T0/B0?x=1"]
)
def test_a_url_of_a_listed_host_is_allowed(url: str) -> None:
    assert _status(url) == 200
    assert _status(url, "PATCH", "/ajax-api/2.0/mlflow/webhooks/w-1/") == 200


@pytest.mark.parametrize(
    "url",
    [
        *("http://hooks.example.com", "https://hooks.example.com:8443", "https://example.com"),
        *("https://hooks.example.com.evil.example", "https://hooks.example.com@evil.example/"),
        *("https://evil.example\\@hooks.example.com", "https://a.hooks.example.com", "", None, 5),
        *(
            "https://127.0.0.1",
            "https://[::1]",
            "https://[",
            "//hooks.example.com",
            "hooks.example.com",
        ),
        *("https://evil.example#@hooks.example.com", "https://hooks.example.com\n.evil.example"),
        *(
            "https://hooks.example.com:port",
            "https://x:y@hooks.example.com",
            ["https://hooks.example.com"],
        ),
    ],
)
def test_any_other_url_is_rejected_by_name(url: Any) -> None:
    answer = _answer(url)
    assert answer.status == 403
    message = json.loads(answer.body)["message"]
    assert message.startswith(f"The webhook URL {url!r} is not allowed: ")
    assert _status(url, "PATCH", "/api/2.0/mlflow/webhooks/w-1") == 403


def test_only_names_of_hosts_can_be_allowed() -> None:
    given = {"MLFLOW_IAP_AUDIENCE": "/projects/1/apps/p"}
    name = "MLFLOW_IAP_WEBHOOK_HOSTS"
    settings = GateSettings.from_environment({**given, name: "hooks.example.com, a.example,"})
    assert settings.webhook_hosts == ("hooks.example.com", "a.example")
    for host in (
        "*",
        "https://x.example",
        "x.example:1",
        "X.example",
        "10.0.0.1",
        "localhost",
        "x/y",
    ):
        with pytest.raises(StartError, match="MLFLOW_IAP_WEBHOOK_HOSTS contains"):
            GateSettings.from_environment({**given, name: host})
