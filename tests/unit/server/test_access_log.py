"""What is logged about sign-ins and refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from asgi import Headers, Recorder, call
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.server.access_log import AccessLog
from mlflow_iap_callbacks.server.assertion import Verifier
from mlflow_iap_callbacks.server.error_response import send_error
from mlflow_iap_callbacks.server.gate import Gate
from mlflow_iap_callbacks.server.public_keys import PublicKeys

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

ADA = "ada@example.com"
HEADER = "X-Goog-IAP-JWT-Assertion"
RUNS = "/api/2.0/mlflow/runs/search"
TRACE = "105445aa7843bc8bf206b12000100000"


@pytest.fixture(scope="module")
def cloud() -> Iterator[LocalCloud]:
    with LocalCloud() as running:
        yield running


class Logged:
    """A gate, its clock, and the lines that it has logged."""

    def __init__(self, cloud: LocalCloud, app: Any = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self.now = 0.0
        log = AccessLog(lambda line: self.lines.append(json.loads(line)), lambda: self.now)
        verifier = Verifier(
            PublicKeys(cloud.assertion_keys_url), cloud.server_environment()["MLFLOW_IAP_AUDIENCE"]
        )
        self.gate = Gate(app or Recorder(), verifier, log=log)

    def ask(self, headers: Headers = (), path: str = RUNS, *, times: int = 1) -> int:
        async def all_of_them() -> int:
            for _ in range(times):
                answer = await call(self.gate, path, "POST", headers, query_string=b"key=secret")
            return answer.status

        return asyncio.run(all_of_them())


def test_a_sign_in_is_logged_once_in_an_hour_for_each_account(cloud: LocalCloud) -> None:
    logged = Logged(cloud)
    assertion = cloud.assertion(ADA)
    logged.ask({HEADER: assertion}, times=3)
    logged.ask({HEADER: cloud.assertion("bob@example.com")})
    assert [line["account"] for line in logged.lines] == [ADA, "bob@example.com"]
    logged.now = 3601
    logged.ask({HEADER: assertion})
    assert [line["account"] for line in logged.lines] == [ADA, "bob@example.com", ADA]
    assert logged.lines[0]["severity"] == "INFO"


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"email": None}, "it has no e-mail"),
        ({"iss": "x"}, "its issuer is not Identity-Aware Proxy"),
        ({"aud": "/projects/9/apps/x"}, "it is for another application"),
    ],
)
def test_a_refused_assertion_is_logged_with_the_reason_and_never_with_a_token(
    cloud: LocalCloud, claims: dict[str, Any], reason: str
) -> None:
    logged = Logged(cloud)
    assertion = cloud.assertion(ADA, **claims)
    trace = {"X-Cloud-Trace-Context": f"{TRACE}/1;o=1"}
    assert logged.ask({HEADER: assertion, **trace}) == 401
    (line,) = logged.lines
    assert (line["reason"], line["status"], line["severity"]) == (reason, 401, "WARNING")
    assert (line["account"], line["path"], line["method"]) == (None, RUNS, "POST")
    assert line["logging.googleapis.com/trace"].endswith(TRACE)
    text = json.dumps(line)
    assert "secret" not in text
    assert not any(part in text for part in assertion.split("."))


def test_the_trace_has_the_form_that_cloud_logging_reads(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
    logged = Logged(cloud)
    logged.ask({"traceparent": f"00-{TRACE.upper()}-00f067aa0ba902b7-01"})
    logged.ask({"traceparent": "something else"})
    assert logged.lines[0]["logging.googleapis.com/trace"] == f"projects/p/traces/{TRACE}"
    assert "logging.googleapis.com/trace" not in logged.lines[1]


def test_refusals_after_the_sign_in_are_logged_with_the_account(cloud: LocalCloud) -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await send_error(scope, send, 403, "PERMISSION_DENIED", "no")

    logged = Logged(cloud, refuse)
    headers = {HEADER: cloud.assertion(ADA)}
    assert logged.ask(headers) == 403
    assert logged.ask(headers, "/api/3.0/mlflow/new") == 404
    assert logged.ask(headers, "/x\n\x1b[31m") == 400
    assert [line["account"] for line in logged.lines] == [ADA] * 4
    assert [line.get("status") for line in logged.lines] == [None, 403, 404, 400]


def test_a_flood_of_refusals_is_logged_at_a_limited_rate(cloud: LocalCloud) -> None:
    logged = Logged(cloud)
    logged.ask(times=500)
    assert len(logged.lines) == 60
    logged.now = 61
    logged.ask(times=2)
    assert [line.get("left_out_before") for line in logged.lines[60:]] == [440, None]


def test_a_request_with_too_many_bytes_of_headers_is_rejected_before_it_is_verified(
    cloud: LocalCloud,
) -> None:
    app = Recorder()
    logged = Logged(cloud, app)
    headers = {HEADER: cloud.assertion(ADA), "Cookie": "x" * 64 * 1024}
    assert logged.ask(headers) == 431
    assert (app.calls, logged.lines[0]["account"]) == (0, None)
    assert logged.ask({**headers, "Cookie": "x" * 32 * 1024}) == 200
