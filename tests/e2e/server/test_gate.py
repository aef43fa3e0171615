"""MLflow, served by `mlflow server --app-name iap` behind a local IAP."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests

from mlflow_iap_callbacks import IAPMlflowClient
from mlflow_iap_callbacks.local import LocalCloud, MlflowServer
from server_helpers import ASSERTION, gated, send, spans
from tracking_server import begin
from variables import set_all
from waiting import wait_until

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

API = "/api/2.0/mlflow"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalCloud, MlflowServer]]:
    with gated(tmp_path_factory.mktemp("gated"), workers=2) as both:
        yield both


@pytest.fixture
def cloud(both: tuple[LocalCloud, MlflowServer], monkeypatch: pytest.MonkeyPatch) -> LocalCloud:
    set_all(monkeypatch, both[0].environment())
    return both[0]


@pytest.fixture
def server(both: tuple[LocalCloud, MlflowServer]) -> MlflowServer:
    return both[1]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/static-files/index.html"),
        ("POST", f"{API}/runs/create"),
        ("GET", "/ajax-api/3.0/mlflow/server-info"),
        ("POST", "/v1/traces"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/x"),
        ("GET", "/api/3.0/mlflow/mcp-servers"),
        ("GET", "//health"),
        ("GET", "/health/"),
        ("GET", "/health/../api/2.0/mlflow/experiments/search"),
        ("GET", "/nothing"),
    ],
)
def test_requests_that_bypass_iap_get_a_401(server: MlflowServer, method: str, path: str) -> None:
    forged = {
        "X-Goog-Authenticated-User-Email": "accounts.google.com:ada@example.com",
        ASSERTION: "e30.e30.e30",
    }
    # Set afterwards, because requests would normalize the path.
    request = requests.Request(method, server.url, headers=forged).prepare()
    request.url = server.url + path
    with requests.Session() as session:
        assert session.send(request, timeout=30).status_code == 401


def test_health_checks_of_the_load_balancer_pass(server: MlflowServer) -> None:
    assert requests.get(f"{server.url}/health", timeout=30).text == "OK"
    assert requests.get(f"{server.url}/version", timeout=30).text == mlflow.__version__


def test_a_websocket_is_rejected(server: MlflowServer) -> None:
    upgrade = {
        **{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    answer = requests.get(f"{server.url}/ws", headers=upgrade, timeout=30)
    assert answer.status_code in (401, 403)


def test_a_run_belongs_to_its_account_no_matter_what_the_client_claims(cloud: LocalCloud) -> None:
    client = IAPMlflowClient()
    experiment_id = client.create_experiment("owners")
    run = client.create_run(experiment_id, tags={"mlflow.user": "mallory", "a": "b"})
    client.set_tag(run.info.run_id, "mlflow.user", "mallory the second")
    client.log_batch(run.info.run_id, tags=[mlflow.entities.RunTag("mlflow.user", "third")])
    found = client.get_run(run.info.run_id)
    assert found.info.user_id == cloud.trainer
    assert found.data.tags["mlflow.user"] == cloud.trainer
    assert found.data.tags["mlflow_iap.claimed_user"] == "third"
    assert found.data.tags["a"] == "b"
    with pytest.raises(mlflow.MlflowException, match="cannot be removed"):
        client.delete_tag(run.info.run_id, "mlflow.user")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("post", f"{API}/runs/create"),
        ("POST", f"/{API}//runs/create"),
        ("POST", f"{API}/runs/create/"),
        ("POST", f"{API}/runs/%63reate"),
        ("POST", f"{API}/./runs/create"),
        ("POST", f"{API}/runs%2Fcreate"),
        ("POST", f"{API}/runs/create%20"),
        ("POST", f"{API}/runs/create;x"),
        ("POST", f"{API}/runs/create%00"),
        ("POST", f"{API}/runs/create?user_id=mallory"),
    ],
)
def test_no_spelling_of_a_request_creates_a_run_of_another_user(
    cloud: LocalCloud, server: MlflowServer, method: str, path: str
) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    headers = {ASSERTION: cloud.assertion(), "Content-Type": "application/json"}
    connection.request(method, path, json.dumps({"user_id": "mallory"}), headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status != 200 or json.loads(body)["run"]["info"]["user_id"] == cloud.trainer


def test_runs_models_and_registered_models_belong_to_the_account(
    cloud: LocalCloud, tmp_path: Path
) -> None:
    mlflow.set_experiment("fluent")
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 0.5)
        mlflow.log_text("text", "notes/note.txt")
        model = mlflow.create_external_model(name="m")
    client = IAPMlflowClient()
    assert client.get_run(run.info.run_id).data.tags["mlflow.user"] == cloud.trainer
    assert client.get_logged_model(model.model_id).tags["mlflow.user"] == cloud.trainer
    assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/notes/note.txt") == "text"
    client.create_registered_model("registered")
    version = client.create_model_version(
        "registered", f"runs:/{run.info.run_id}/notes", run.info.run_id
    )
    assert client.get_registered_model("registered").tags["mlflow.user"] == cloud.trainer
    found = client.get_model_version("registered", version.version)
    assert found.tags["mlflow.user"] == cloud.trainer


def test_a_trace_belongs_to_the_account(cloud: LocalCloud) -> None:
    mlflow.set_experiment("traces")
    with mlflow.start_span("work"):
        mlflow.update_current_trace(metadata={"mlflow.trace.user": "customer"})
    mlflow.flush_trace_async_logging()
    trace_id = mlflow.get_last_active_trace_id()
    assert trace_id is not None
    metadata = mlflow.get_trace(trace_id).info.trace_metadata
    assert metadata["mlflow.user"] == cloud.trainer
    assert metadata["mlflow.trace.user"] == "customer"


ADA, BOB, EVE = (f"{name}@example.com" for name in ("ada", "bob", "eve"))


class Traces:
    """Sends spans and traces of several users to an experiment."""

    def __init__(self, cloud: LocalCloud, server: MlflowServer, experiment_id: str) -> None:
        self.cloud = cloud
        self.server = server
        self.experiment_id = experiment_id

    def _send(self, email: str, method: str, path: str, **options: Any) -> requests.Response:
        return send(self.server, self.cloud.assertion(email), method, path, **options)

    def spans(self, email: str, trace: str, **span: Any) -> int:
        headers = {"X-MLflow-Experiment-Id": self.experiment_id}
        body = spans(trace, **span)
        return self._send(email, "POST", "/v1/traces", json=body, headers=headers).status_code

    def start(self, email: str, trace: str, **fields: Any) -> int:
        place = {"experiment_id": self.experiment_id}
        info = {
            **{"trace_id": f"tr-{trace}", "state": "OK", "request_time": "2026-01-01T00:00:00Z"},
            "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": place},
            **fields,
        }
        path = "/api/3.0/mlflow/traces"
        return self._send(email, "POST", path, json={"trace": {"trace_info": info}}).status_code

    def get(self, trace: str) -> dict[str, Any]:
        path = f"/api/3.0/mlflow/traces/tr-{trace}"
        found: dict[str, Any] = self._send(ADA, "GET", path).json()["trace"]["trace_info"]
        return found

    def owner(self, trace: str) -> object:
        return self.get(trace)["trace_metadata"]["mlflow.user"]


@pytest.fixture(scope="module")
def traces(both: tuple[LocalCloud, MlflowServer]) -> Traces:
    body = {"name": "owned-traces"}
    assertion = both[0].assertion(ADA)
    answer = send(both[1], assertion, "POST", f"{API}/experiments/create", json=body)
    return Traces(*both, answer.json()["experiment_id"])


def test_spans_belong_to_the_account_no_matter_what_their_attributes_say(traces: Traces) -> None:
    attributes = {
        **{"mlflow.traceTag.mlflow.user": EVE, "mlflow.traceTag.MLflow.User ": EVE},
        **{"mlflow.user": EVE, "mlflow.traceTag.mlflow.artifactLocation": "gs://bucket/of-ada"},
        "user.id": "customer",
    }
    assert traces.spans(BOB, "1" * 32, **attributes) == 200
    assert traces.owner("1" * 32) == BOB
    found = traces.get("1" * 32)
    assert found["trace_metadata"]["mlflow.trace.user"] == "customer"
    assert found["tags"]["mlflow_iap.claimed_user"] == EVE
    assert found["tags"]["mlflow.artifactLocation"].startswith("mlflow-artifacts:/")
    assert not any("user" in key.lower() for key in found["tags"] if key[:11] != "mlflow_iap.")


@pytest.mark.parametrize("begins", ["spans", "start"])
def test_a_trace_of_another_user_cannot_be_started_again_or_renamed(
    traces: Traces, begins: str
) -> None:
    trace = begins.encode().hex().ljust(32, "0")
    assert getattr(traces, begins)(ADA, trace) == 200
    before = traces.get(trace)
    assert traces.start(EVE, trace, request_preview="eve", state="ERROR") == 403
    assert traces.spans(EVE, trace, span=2, name="eve") == 403
    assert traces.get(trace) == before
    assert traces.start(ADA, trace, request_preview="ada") == 200
    assert traces.spans(ADA, trace, name="again") == 200
    assert traces.owner(trace) == ADA


def test_another_user_adds_spans_to_a_trace_but_replaces_none(traces: Traces) -> None:
    trace = "3" * 32
    assert traces.spans(ADA, trace) == 200
    assert traces.spans(BOB, trace, span=2, parent=1) == 200
    assert traces.spans(EVE, trace, span=2, parent=1, name="replaced") == 403
    assert traces.spans(EVE, trace, span=1, parent=2) == 403
    assert traces.owner(trace) == ADA


def test_a_service_starts_a_trace_whose_first_spans_another_service_sent(
    traces: Traces,
) -> None:
    trace = "4" * 32
    assert traces.spans(BOB, trace, span=2, parent=1) == 200
    assert traces.spans(ADA, trace, span=1) == 200
    assert traces.start(ADA, trace, request_preview="ada") == 200
    assert traces.start(EVE, trace, request_preview="eve") == 403
    assert traces.get(trace)["request_preview"] == "ada"
    assert traces.owner(trace) == BOB


def test_a_large_upload_passes_unchanged(cloud: LocalCloud, tmp_path: Path) -> None:
    client = IAPMlflowClient()
    run = client.create_run(client.create_experiment("uploads"))
    content = os.urandom(12 * 1024 * 1024)
    (tmp_path / "large.bin").write_bytes(content)
    client.log_artifact(run.info.run_id, str(tmp_path / "large.bin"))
    path = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/large.bin")
    assert Path(path).read_bytes() == content


def test_a_forged_header_does_not_change_the_owner(cloud: LocalCloud, server: MlflowServer) -> None:
    client = IAPMlflowClient()
    experiment_id = client.create_experiment("forged")
    answer = send(
        server,
        cloud.assertion("bob@example.com"),
        *("POST", f"{API}/runs/create"),
        json={"experiment_id": experiment_id, "user_id": cloud.trainer},
        headers={"X-Goog-Authenticated-User-Email": "accounts.google.com:eve@example.com"},
    )
    assert answer.json()["run"]["info"]["user_id"] == "bob@example.com"


def test_a_new_key_is_accepted_while_the_server_runs(
    cloud: LocalCloud, server: MlflowServer
) -> None:
    old = cloud.assertion()
    cloud.rotate_assertion_key()

    def status(assertion: str) -> int:
        return send(server, assertion, "GET", f"{API}/experiments/get?experiment_id=0").status_code

    wait_until(
        lambda: [status(cloud.assertion()) for _ in range(8)] == [200] * 8,
        "both processes know the new key",
    )
    assert status(old) == 200


def test_a_flood_of_unknown_keys_causes_few_requests_to_google(
    cloud: LocalCloud, server: MlflowServer
) -> None:
    cloud.google_requests.clear()
    with LocalCloud() as other:
        answers = {send(server, other.assertion(), "GET", "/").status_code for _ in range(200)}
    assert answers <= {401, 503}  # 503: a new key may be missing in what was just fetched
    assert send(server, cloud.assertion(), "GET", "/").status_code == 200
    # Two processes fetch the keys, each at most once in ten seconds.
    assert len(cloud.google_requests) <= 4


def test_without_an_audience_the_server_exits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    arguments = ["server", "--app-name", "iap", "--port", "0", "--workers", "2"]
    arguments += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    with (tmp_path / "log").open("wb") as log:
        process = begin(arguments, os.environ, log, tmp_path)
    try:
        process.wait(90)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    output = (tmp_path / "log").read_text()
    # Not by its status: `mlflow server` exits with 0 even if the server failed.
    assert "\nMLFLOW_IAP_AUDIENCE is not set, so every request would be rejected" in output
    assert "create_app" not in output  # no traceback
