"""MLflow's own permissions, for visitors whom the gate admits."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from mlflow_iap_callbacks.local import LocalCloud, MlflowServer
from server_helpers import gated, send, spans

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")
pytestmark = pytest.mark.slow

API = "/api/2.0/mlflow"
ROOT, ADA, BOB, EVE = (f"{name}@example.com" for name in ("root", "ada", "bob", "eve"))


class Team:
    """Sends requests of several users to a server."""

    def __init__(self, cloud: LocalCloud, server: MlflowServer) -> None:
        self.cloud = cloud
        self.server = server

    def send(self, email: str, method: str, path: str, **options: Any) -> requests.Response:
        return send(self.server, self.cloud.assertion(email), method, path, **options)

    def post(self, email: str, call: str, **body: Any) -> requests.Response:
        return self.send(email, "POST", f"{API}/{call}", json=body)

    def experiment(self, email: str, name: str) -> str:
        return str(self.post(email, "experiments/create", name=name).json()["experiment_id"])

    def grant(self, email: str, experiment_id: str, permission: str, *, by: str) -> int:
        body = {
            **{"username": email, "resource_type": "experiment"},
            **{"resource_id": experiment_id, "resource_pattern": experiment_id},
            "permission": permission,
        }
        path = "/api/3.0/mlflow/users/permissions/grant"
        return self.send(by, "POST", path, json=body).status_code

    def read(self, email: str, experiment_id: str) -> int:
        path = f"{API}/experiments/get?experiment_id={experiment_id}"
        return self.send(email, "GET", path).status_code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("permissions")


@pytest.fixture(scope="module")
def team(folder: Path) -> Iterator[Team]:
    with gated(
        folder,
        workers=2,
        MLFLOW_IAP_PERMISSIONS="true",
        MLFLOW_IAP_ADMINS=f"{ROOT}, Second@Example.com",
        MLFLOW_IAP_DEFAULT_PERMISSION="NO_PERMISSIONS",
    ) as both:
        yield Team(*both)


def users(folder: Path) -> dict[str, tuple[bool, str]]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = database.execute("SELECT username, is_admin, password_hash FROM users")
        return {name: (bool(is_admin), password) for name, is_admin, password in rows}


def test_users_may_do_what_they_were_granted_and_admins_may_do_everything(team: Team) -> None:
    experiment_id = team.experiment(ADA, "shared")
    assert team.read(BOB, experiment_id) == 403
    assert team.read(EVE, experiment_id) == 403
    assert team.grant(BOB, experiment_id, "READ", by=ADA) == 200
    assert team.read(BOB, experiment_id) == 200
    assert team.read(EVE, experiment_id) == 403
    run = {"experiment_id": experiment_id}
    assert team.post(BOB, "runs/create", **run).status_code == 403
    assert team.post(EVE, "runs/create", **run).status_code == 403
    made = team.post(ADA, "runs/create", **run).json()["run"]["info"]
    assert made["user_id"] == ADA
    assert team.post(
        EVE, "runs/set-tag", run_id=made["run_id"], key="a", value="b"
    ).status_code == (403)
    assert team.read(ROOT, experiment_id) == 200
    assert team.post(ROOT, "experiments/delete", experiment_id=experiment_id).status_code == 200


def test_routes_outside_of_flask_check_permissions_too(team: Team) -> None:
    experiment_id = team.experiment(ADA, "native")
    run_id = team.post(ADA, "runs/create", experiment_id=experiment_id).json()["run"]["info"][
        "run_id"
    ]
    artifact = f"/api/2.0/mlflow-artifacts/artifacts/{experiment_id}/{run_id}/artifacts/a.txt"
    assert team.send(ADA, "PUT", artifact, data=b"secret").status_code == 200
    assert team.send(ADA, "GET", artifact).content == b"secret"
    for prefix in ("/api", "/ajax-api"):
        path = artifact.replace("/api", prefix, 1)
        assert team.send(EVE, "GET", path).status_code == 403
        assert team.send(EVE, "PUT", path, data=b"changed").status_code == 403
        assert team.send(EVE, "DELETE", path).status_code == 403
    spans = {"Content-Type": "application/x-protobuf", "X-MLflow-Experiment-Id": experiment_id}
    assert team.send(EVE, "POST", "/v1/traces", data=b"", headers=spans).status_code == 403
    assert team.send(ADA, "POST", "/v1/traces", data=b"", headers=spans).status_code != 403
    assert team.send(ROOT, "GET", artifact).content == b"secret"


def test_a_trace_is_not_moved_into_an_experiment_of_another_user(team: Team) -> None:
    hers, his = team.experiment(ADA, "traces-of-ada"), team.experiment(BOB, "traces-of-bob")

    def start(email: str, experiment_id: str) -> int:
        place = {"experiment_id": experiment_id}
        info = {
            **{"trace_id": f"tr-{'a' * 32}", "request_time": "2026-01-01T00:00:00Z", "state": "OK"},
            "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": place},
        }
        path, body = "/api/3.0/mlflow/traces", {"trace": {"trace_info": info}}
        return team.send(email, "POST", path, json=body).status_code

    def spans_to(email: str, experiment_id: str, trace: str, **headers: str) -> int:
        headers = {"X-MLflow-Experiment-Id": experiment_id, **headers}
        body = spans(trace, span=7, parent=1)
        return team.send(email, "POST", "/v1/traces", json=body, headers=headers).status_code

    assert start(ADA, hers) == 200
    assert start(BOB, his) == 403
    assert spans_to(BOB, his, "a" * 32) == 403
    run = team.post(ADA, "runs/create", experiment_id=hers).json()["run"]["info"]["run_id"]
    assert spans_to(BOB, his, "b" * 32, **{"X-MLflow-Run-Id": run}) == 403
    assert spans_to(ADA, hers, "b" * 32, **{"X-MLflow-Run-Id": run}) == 200


def test_no_record_of_a_user_is_stored_at_a_location_of_another_user(team: Team) -> None:
    hers, his = team.experiment(ADA, "place-of-ada"), team.experiment(BOB, "place-of-bob")
    run = team.post(ADA, "runs/create", experiment_id=hers).json()["run"]["info"]["run_id"]
    assert team.post(BOB, "registered-models/create", name="of-bob").status_code == 200
    trace = {"trace_id": "tr-1", "request_time": "2026-01-01T00:00:00Z", "state": "OK"}
    places = [
        *(f"mlflow-artifacts:/{hers}", f"mlflow-artifacts:/{hers}/{run}/artifacts"),
        *(
            "mlflow-artifacts:/",
            "mlflow-artifacts:/99999",
            "mlflow-artifacts:/./x",
            f"runs:/{run}/m",
        ),
        f"mlflow-artifacts:/{his}/%2e%2e/{hers}",
    ]
    for number, place in enumerate(places):
        assert team.post(
            BOB, "experiments/create", name=f"n{number}", artifact_location=place
        ).status_code in (400, 403)
        version = team.post(BOB, "model-versions/create", name="of-bob", source=place)
        assert version.status_code in (400, 403)
        tags = {"mlflow.artifactLocation": place}
        info = {
            **trace,
            "tags": tags,
            "trace_location": {
                "type": "MLFLOW_EXPERIMENT",
                "mlflow_experiment": {"experiment_id": his},
            },
        }
        body = {"trace": {"trace_info": info}}
        started = team.send(BOB, "POST", "/api/3.0/mlflow/traces", json=body)
        assert started.status_code == 200
        kept = started.json()["trace"]["trace_info"]["tags"]
        assert kept["mlflow.artifactLocation"].startswith(f"mlflow-artifacts:/{his}/traces/tr-1/")
    place = f"mlflow-artifacts:/{his}/shared"
    made = team.post(BOB, "experiments/create", name="own-place", artifact_location=place)
    assert made.status_code == 200
    made = team.post(ROOT, "experiments/create", name="by-root", artifact_location=places[0])
    assert made.status_code == 200


def test_edit_permission_is_for_tags_of_anothers_trace_but_not_for_its_owner_and_place(
    team: Team,
) -> None:
    hers, own = team.experiment(ADA, "tags-of-ada"), team.experiment(EVE, "tags-of-eve")
    assert team.grant(EVE, hers, "EDIT", by=ADA) == 200
    trace = f"/api/3.0/mlflow/traces/tr-{'c' * 32}"
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": hers}}
    info = {"trace_id": f"tr-{'c' * 32}", "request_time": "2026-01-01T00:00:00Z", "state": "OK"}
    body = {"trace": {"trace_info": {**info, "trace_location": place}}}
    assert team.send(ADA, "POST", "/api/3.0/mlflow/traces", json=body).status_code == 200

    def kept() -> dict[str, Any]:
        found = team.send(ADA, "GET", trace).json()["trace"]["trace_info"]
        return {name: found.get(name, {}) for name in ("tags", "trace_metadata")}

    before = kept()
    elsewhere = {
        "mlflow.artifactLocation": f"mlflow-artifacts:/{own}/traces",
        "mlflow.trace.archiveLocation": f"mlflow-artifacts:/{own}/traces",
        "mlflow.trace.spansLocation": "ARCHIVE_REPO",
        "mlflow_iap.started_by": EVE,
    }
    for key, value in elsewhere.items():
        tag = {"key": key, "value": value}
        assert team.send(EVE, "PATCH", f"{trace}/tags", json=tag).status_code == 403
        assert team.send(EVE, "DELETE", f"{trace}/tags", json=tag).status_code == 403
    tags = [{"key": key, "value": value} for key, value in elsewhere.items()]
    end = {"timestamp_ms": 1767225600001, "status": "OK", "tags": tags, "request_metadata": tags}
    path = trace.replace("3.0", "2.0")
    assert team.send(EVE, "PATCH", path, json=end).status_code == 200
    assert kept() == before
    assert team.send(EVE, "POST", "/api/3.0/mlflow/traces", json=body).status_code == 403
    note = {"key": "note", "value": "seen"}
    assert team.send(EVE, "PATCH", f"{trace}/tags", json=note).status_code == 200
    assert kept() == {**before, "tags": {**before["tags"], "note": "seen"}}
    assert team.send(EVE, "DELETE", f"{trace}/tags", json=note).status_code == 200
    assert kept() == before


def test_registered_models_have_permissions_too(team: Team) -> None:
    assert team.post(ADA, "registered-models/create", name="model").status_code == 200
    path = f"{API}/registered-models/get?name=model"
    assert team.send(ADA, "GET", path).status_code == 200
    assert team.send(EVE, "GET", path).status_code == 403
    assert team.send(ROOT, "GET", path).status_code == 200


def test_no_header_and_no_password_changes_who_a_visitor_is(team: Team) -> None:
    experiment_id = team.experiment(ADA, "forged")
    path = f"{API}/experiments/get?experiment_id={experiment_id}"
    forged = {
        "X-Goog-Authenticated-User-Email": f"accounts.google.com:{ADA}",
        "X-Forwarded-User": ADA,
        "Remote-User": ADA,
    }
    assert team.send(EVE, "GET", path, headers=forged).status_code == 403
    assert team.send(EVE, "GET", path, auth=(ADA, "password1234")).status_code == 403
    assert requests.get(team.server.url + path, auth=(ROOT, "x"), timeout=30).status_code == 401


def test_a_new_visitor_becomes_a_user_with_a_random_password(team: Team, folder: Path) -> None:
    team.read("New@Example.com", "0")
    is_admin, password = users(folder)["new@example.com"]
    assert not is_admin
    assert password
    assert users(folder)[ROOT][0]
    assert "admin" not in users(folder)


def test_an_admin_in_the_configuration_stays_an_admin(team: Team, folder: Path) -> None:
    second = "second@example.com"
    assert team.experiment(second, "of-the-second")
    assert users(folder)[second][0]
    body = {"username": second, "is_admin": False}
    assert team.send(ROOT, "PATCH", f"{API}/users/update-admin", json=body).status_code == 200
    assert team.read(second, team.experiment(ADA, "of-ada")) == 200
    assert users(folder)[second][0]


def test_nobody_signs_up_with_a_password(team: Team) -> None:
    assert team.send(ROOT, "GET", "/signup").status_code == 404
    assert team.send(EVE, "POST", f"{API}/users/create", json={"username": "x"}).status_code == 403


def test_health_checks_pass_without_a_user(team: Team) -> None:
    for path in ("/health", "/version"):
        assert requests.get(team.server.url + path, timeout=30).status_code == 200


@pytest.mark.soak
def test_everybody_may_read_by_default(tmp_path: Path) -> None:
    with gated(tmp_path, MLFLOW_IAP_PERMISSIONS="true", MLFLOW_IAP_ADMINS=ROOT) as both:
        team = Team(*both)
        experiment_id = team.experiment(ADA, "mine")
        assert team.read(EVE, experiment_id) == 200  # MLflow's default permission is READ
        assert team.post(EVE, "runs/create", experiment_id=experiment_id).status_code == 403
        assert {ROOT, ADA, EVE} <= users(tmp_path).keys()
