"""With permissions on, a stranger neither reads nor changes what belongs to somebody else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, seed, settings

import api_requests
from api_requests import Request
from deployed_server import FORKED, DeployedServer, run, set_up
from mlflow_iap_callbacks.local import LocalCloud, MlflowServer
from ports import free_port
from server_database import KINDS, variables
from server_helpers import ASSERTION, gated, spans

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

_ADA, _EVE, _ROOT = (f"{name}@example.com" for name in ("ada", "eve", "root"))
_SECRET = "of-ada-only"
_API, _API_3 = "/api/2.0/mlflow", "/api/3.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"


class Owner:
    """One user's records: one of each kind, and what is known of them."""

    def __init__(
        self, cloud: LocalCloud, server: MlflowServer | DeployedServer, email: str, mark: str
    ) -> None:
        self._cloud = cloud
        self._server = server
        self.email = email
        name = email.partition("@")[0]
        tag = {"key": "note", "value": mark}

        self.experiment = self.post(f"{_API}/experiments/create", name=name)["experiment_id"]
        run = self.post(f"{_API}/runs/create", experiment_id=self.experiment, run_name=mark)
        self.run = run["run"]["info"]["run_id"]
        metric = {"key": "loss", "value": 0.5, "timestamp": 1, "step": 0}
        params = [{"key": "note", "value": mark}]
        self.post(f"{_API}/runs/log-batch", run_id=self.run, metrics=[metric], params=params)
        self.path = f"{self.experiment}/{self.run}/artifacts/m/a.txt"
        assert self.send("PUT", f"{_ARTIFACTS}/{self.path}", data=mark).ok
        model = self.post(
            f"{_API}/logged-models", experiment_id=self.experiment, name="m", tags=[tag]
        )
        self.model = model["model"]["info"]["model_id"]
        self.registered = f"{name}-model"
        self.post(f"{_API}/registered-models/create", name=self.registered, description=mark)
        source = f"mlflow-artifacts:/{self.path.removesuffix('/a.txt')}"
        version = {"name": self.registered, "source": source, "run_id": self.run}
        self.post(f"{_API}/model-versions/create", description=mark, **version)
        dataset = self.post(
            f"{_API_3}/datasets/create", name=mark, experiment_ids=[self.experiment]
        )
        self.dataset = dataset["dataset"]["dataset_id"]
        records = json.dumps([{"inputs": {"q": mark}}])
        self.post(f"{_API_3}/datasets/{self.dataset}/records", records=records)
        self.trace = f"tr-{name.encode().hex():0>32}"
        place = {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": self.experiment},
        }
        info = {
            **{"trace_id": self.trace, "state": "OK", "request_time": "2026-01-01T00:00:00Z"},
            **{"request_preview": mark, "trace_location": place},
        }
        self.post(f"{_API_3}/traces", trace={"trace_info": info})
        self.spans = f"tr-{name.encode().hex():f>32}"
        headers = {"X-MLflow-Experiment-Id": self.experiment}
        attributes: Any = {"mlflow.spanInputs": mark}
        body = spans(self.spans[3:], name=mark, **attributes)
        assert self.send("POST", "/v1/traces", json=body, headers=headers).ok
        issue = self.post(
            f"{_API_3}/issues", experiment_id=self.experiment, name=mark, description=mark
        )
        self.issue = str(issue["issue"]["issue_id"])

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {ASSERTION: self._cloud.assertion(self.email), **options.pop("headers", {})}
        return requests.request(
            method, self._server.url + path, headers=headers, timeout=60, **options
        )

    def post(self, path: str, **body: Any) -> Any:
        answer = self.send("POST", path, json=body)
        assert answer.ok, f"{path}: {answer.text}"
        return answer.json()

    def known(self) -> dict[str, list[str]]:
        """Return the values of each field of a request that names one of the records."""
        folder, place = self.path.removesuffix("/a.txt"), f"mlflow-artifacts:/{self.experiment}"
        return {
            "experiment_id": [self.experiment],
            "run_id": [self.run],
            "run_uuid": [self.run],
            "source_run_id": [self.run],
            "trace_id": [self.trace, self.spans],
            "request_id": [self.trace, self.spans],
            "model_id": [self.model],
            "dataset_id": [self.dataset],
            "issue_id": [self.issue],
            "name": [self.registered],
            "username": [self.email],
            "path": [self.path, folder, "m/a.txt", "m", "", f"./{self.path}", f"//{self.path}"],
            "artifact_location": [place, f"runs:/{self.run}"],
            "source": [f"mlflow-artifacts:/{folder}", f"runs:/{self.run}/m"],
            "": [self.trace, self.model, self.dataset, self.issue, self.run, self.experiment],
        }

    def everything(self) -> list[tuple[int, str]]:
        """Return what the owner reads of all records."""
        paths = [
            f"{_API}/experiments/get?experiment_id={self.experiment}",
            f"{_API}/runs/get?run_id={self.run}",
            f"{_API}/metrics/get-history?run_id={self.run}&metric_key=loss",
            f"{_API}/artifacts/list?run_id={self.run}&path=m",
            f"{_ARTIFACTS}/{self.path}",
            f"{_API}/logged-models/{self.model}",
            f"{_API}/registered-models/get?name={self.registered}",
            f"{_API}/model-versions/get?name={self.registered}&version=1",
            f"{_API_3}/datasets/{self.dataset}",
            f"{_API_3}/datasets/{self.dataset}/records",
            f"{_API_3}/datasets/{self.dataset}/experiment-ids",
            f"{_API_3}/traces/{self.trace}",
            f"{_API_3}/traces/get?trace_id={self.spans}",
            f"{_API_3}/issues/{self.issue}",
        ]
        answers = [self.send("GET", path) for path in paths]
        return [(answer.status_code, answer.text) for answer in answers]


class Both:
    def __init__(self, cloud: LocalCloud, server: MlflowServer | DeployedServer) -> None:
        self.ada = Owner(cloud, server, _ADA, _SECRET)
        self.eve = Owner(cloud, server, _EVE, "of-eve")
        self.before = self.ada.everything()
        hers, own = self.ada.known(), self.eve.known()
        others = {
            **{"key": ["note", "mlflow.user"], "tag_key": ["note"], "version": ["1"]},
            **{"metric_key": ["loss"], "view_type": ["ALL"], "page_token": [""], "stage": ["None"]},
            **{"filter": [""], "filter_string": [""], "resource_type": ["experiment"]},
            **{"permission": ["READ", "MANAGE"], "max_results": ["10"], "resource_pattern": ["*"]},
            "type": ["MLFLOW_EXPERIMENT"],
        }
        # Twice: most requests are about her records.
        self.known = {name: [*hers[name] * 2, *own[name]] for name in hers} | others

    def sends(self, request: Request) -> requests.Response:
        options: dict[str, Any] = {"params": request.query, "json": request.body}
        if request.path == "/v1/traces":
            place, traces = request.body or {}, self.known["trace_id"]
            trace = traces[len(json.dumps(place)) % len(traces)]
            run = {"X-MLflow-Run-Id": self.ada.run} if "run_id" in place else {}
            headers = {"X-MLflow-Experiment-Id": self.eve.experiment, **run}
            options = {"json": spans(trace[3:], name="eve"), "headers": headers}
        elif request.path == "/graphql":
            options = {"json": self._query(request.body or {})}
        elif request.method == "PUT":
            options = {"data": "changed"}
        return self.eve.send(request.method, request.path, **options)

    def _query(self, body: Mapping[str, Any]) -> dict[str, Any]:
        queries = [
            ("GetRun", "runId", self.ada.run, "run{info{runName} data{params{value}}}"),
            ("GetExperiment", "experimentId", self.ada.experiment, "experiment{name}"),
            ("ListArtifacts", "runId", self.ada.run, "files{path}"),
            ("SearchRuns", "experimentIds", [self.ada.experiment], "runs{info{runName}}"),
        ]
        name, field, value, wanted = queries[len(json.dumps(body)) % len(queries)]
        text = f"query Q($i: Mlflow{name}Input!){{mlflow{name}(input:$i){{{wanted}}}}}"
        return {"operationName": "Q", "query": text, "variables": {"i": {field: value}}}

    def require_untouched(self, request: Request, answer: requests.Response) -> None:
        assert _SECRET not in answer.text, f"eve reads by {request}: {answer.text[:500]}"
        if request.method != "GET" and answer.status_code < 400:
            assert self.ada.everything() == self.before, f"eve changes something by {request}"


_SETTINGS: Any = {
    "MLFLOW_IAP_PERMISSIONS": "true",
    "MLFLOW_IAP_ADMINS": _ROOT,
    "MLFLOW_IAP_DEFAULT_PERMISSION": "NO_PERMISSIONS",
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder: Path = tmp_path_factory.mktemp("strangers")
    with gated(folder, **_SETTINGS) as (cloud, server):
        yield Both(cloud, server)


@pytest.fixture(scope="module")
def both_in_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder: Path = tmp_path_factory.mktemp("strangers")
    with KINDS["postgresql"]()(folder) as backend:
        set_up(backend)
        name = backend.new_database_for("mlflow")
        given = {**variables(backend, name), **_SETTINGS, "MLFLOW_WORKERS": "1"}
        migrated = run("migrate", given)
        assert migrated.exit_code == 0, migrated.output
        port = free_port()
        with LocalCloud(f"http://127.0.0.1:{port}") as cloud:
            given |= {**cloud.server_environment(), "MLFLOW_SERVER_HOSTS": "127.0.0.1:*"}
            with DeployedServer(folder, given, FORKED, gated_port=port) as server:
                yield Both(cloud, server)


def test_the_requests_are_for_every_route_of_the_table(both: Both) -> None:
    calls = api_requests.calls()
    assert len(calls) > 300
    assert {path for _, path in calls} >= {"/v1/traces", "/graphql", "/get-artifact"}
    assert all(status == 200 for status, _ in both.before)
    assert sum(_SECRET in text for _, text in both.before) >= 10


def _check(both: Both, calls: list[tuple[str, str]], examples: int) -> None:
    for method, path in calls:

        @seed(1)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(api_requests.requests(method, path, both.known))
        def strange_request(request: Request) -> None:
            both.require_untouched(request, both.sends(request))

        strange_request()


def test_no_request_of_a_stranger_reads_or_changes_anothers_records(both: Both) -> None:
    calls = [(method, path) for method, path in api_requests.calls() if "/ajax-api" not in path]
    _check(both, calls, 1)


def test_a_search_has_no_limit_that_mlflow_checks_but_does_not_read(both: Both) -> None:
    body = {"order_by": [{}], "experiment_ids": [both.eve.experiment]}
    request = Request("POST", f"{_API_3}/datasets/search", (), body)
    answer = both.sends(request)
    both.require_untouched(request, answer)
    assert answer.status_code == 400


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_no_request_of_a_stranger_with_any_fields_reads_or_changes_anothers_records(
    both: Both,
) -> None:
    _check(both, api_requests.calls(), 60)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_no_request_of_a_stranger_reads_or_changes_anothers_records_in_postgresql(
    both_in_postgresql: Both,
) -> None:
    assert all(status == 200 for status, _ in both_in_postgresql.before)
    _check(both_in_postgresql, api_requests.calls(), 10)
