"""The rest of MLflow through IAP, with two environment variables and no other code."""

from __future__ import annotations

import hashlib
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import lightgbm as lgb
import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

import python_process
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.local.faults import FaultKind

_30_MB = 30_000_000


@pytest.fixture
def cloud(cloud: LocalCloud) -> Iterator[LocalCloud]:
    """Reset the active experiment and run, which MLflow keeps for the whole process."""
    mlflow.set_experiment(uuid.uuid4().hex)
    yield cloud
    while mlflow.active_run():
        mlflow.end_run()


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return python_process.run("-m", *command)


def _only_the_trainer(cloud: LocalCloud) -> bool:
    return {seen.account for seen in cloud.requests if seen.reached_upstream} == {cloud.trainer}


def test_the_mlflow_command_works_through_iap(cloud: LocalCloud) -> None:
    name = uuid.uuid4().hex
    created = _run("mlflow", "experiments", "create", "-n", name)
    found = _run("mlflow", "experiments", "search")
    assert created.returncode == 0, created.stderr
    assert name in found.stdout
    assert _only_the_trainer(cloud)


def test_the_mlflow_command_shows_what_iap_said(cloud: LocalCloud) -> None:
    cloud.members.clear()
    refused = _run("mlflow", "experiments", "search")
    assert refused.returncode != 0
    assert "roles/iap.httpsResourceAccessor" in refused.stderr


@pytest.mark.parametrize(
    "stale",
    [
        {"MLFLOW_TRACKING_TOKEN": "stale"},
        {"NETRC": "netrc"},
        {"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p"},
    ],
)
def test_iap_takes_precedence_over_other_credentials_in_the_environment(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stale: dict[str, str]
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login u password p\n")
    (tmp_path / "netrc").chmod(0o600)
    for name, value in stale.items():
        monkeypatch.setenv(name, str(tmp_path / value) if name == "NETRC" else value)
    mlflow.search_experiments()
    assert cloud.requests[-1].account == cloud.trainer
    held = "proxy-authorization" if "MLFLOW_TRACKING_USERNAME" in stale else "authorization"
    assert cloud.requests[-1].credential_header == held


@pytest.mark.slow
def test_lightgbm_autolog_works_and_its_model_can_be_registered_and_loaded(
    cloud: LocalCloud,
) -> None:
    rng = np.random.default_rng(0)
    features, target = rng.normal(size=(200, 3)), rng.integers(0, 2, 200)
    mlflow.lightgbm.autolog(log_models=False)
    try:
        with mlflow.start_run() as run:
            data = lgb.Dataset(features, target)
            booster = lgb.train(
                {"objective": "binary", "verbosity": -1, "num_threads": 1},
                data,
                5,
                valid_sets=[data],
            )
            cloud.revoke_tokens()
            mlflow.lightgbm.log_model(booster, name="model", pip_requirements=["lightgbm"])
    finally:
        mlflow.lightgbm.autolog(disable=True)
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run.info.run_id, "training-binary_logloss")
    # Only after early stopping, autolog adds the best iteration's value at the end of the curve.
    assert [point.step for point in history] == list(range(5))

    name = uuid.uuid4().hex
    version = mlflow.register_model(f"runs:/{run.info.run_id}/model", name)
    loaded = mlflow.lightgbm.load_model(f"models:/{name}/{version.version}")
    assert loaded.model_to_string() == booster.model_to_string()
    assert _only_the_trainer(cloud)


def test_traces_work_through_iap(cloud: LocalCloud) -> None:
    @mlflow.trace
    def add(a: int, b: int) -> int:
        return a + b

    add(1, 2)
    mlflow.flush_trace_async_logging()
    experiment_id = mlflow.tracking.fluent._get_experiment_id()
    assert experiment_id is not None
    traces = mlflow.MlflowClient().search_traces([experiment_id])
    assert len(traces) == 1
    assert _only_the_trainer(cloud)


@pytest.mark.parametrize(
    "fault",
    [
        "reject_midway",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("reset_before", "answer")),
    ],
)
def test_an_artifact_of_30_mb_arrives_complete_after_an_interrupted_upload(
    cloud: LocalCloud, tmp_path: Path, fault: str
) -> None:
    content = np.random.default_rng(0).bytes(_30_MB)
    (tmp_path / "large.bin").write_bytes(content)
    with mlflow.start_run() as run:
        cloud.fault(fault, method="PUT", status=503)  # type: ignore[arg-type]
        mlflow.log_artifact(str(tmp_path / "large.bin"))
    uploads = [seen.status for seen in cloud.requests if seen.method == "PUT"]
    assert uploads == [{"reject_midway": 401, "reset_before": 0, "answer": 503}[fault], 200]

    there = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="large.bin", dst_path=str(tmp_path / "there")
    )
    assert hashlib.sha256(Path(there).read_bytes()).digest() == hashlib.sha256(content).digest()


@pytest.mark.slow
@pytest.mark.parametrize("status", [302, 401, 403])
def test_a_downloaded_file_never_contains_a_sign_in_page(
    cloud: LocalCloud, tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    (tmp_path / "file.txt").write_text("content")
    with mlflow.start_run() as run:
        mlflow.log_artifact(str(tmp_path / "file.txt"))
    cloud.fault("answer", method="GET", status=status, from_iap=True, times=0, path="artifacts/")
    (tmp_path / "there").mkdir()
    with pytest.raises(MlflowException):
        mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path="file.txt", dst_path=str(tmp_path / "there")
        )
    assert [path for path in (tmp_path / "there").rglob("*") if path.is_file()] == []
    assert "rejected the request" in caplog.text


def test_fluent_runs_continue_while_tokens_are_revoked(cloud: LocalCloud) -> None:
    with mlflow.start_run() as run:
        for step in range(10):
            mlflow.log_metric("m", step, step=step)
            if step % 3 == 0:
                cloud.revoke_tokens()
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "m")
    assert [(point.step, point.value) for point in history] == [(s, float(s)) for s in range(10)]
    assert len([seen for seen in cloud.requests if seen.status == 401]) == 4


def test_requests_to_another_tracking_server_are_not_changed(
    cloud: LocalCloud, tmp_path: Path
) -> None:
    mlflow.search_experiments()
    with LocalCloud() as other:
        before = len(other.requests)
        # Neither MLflow's tracking URI nor an IAPMlflowClient names it, so it gets no token.
        client = mlflow.MlflowClient(other.url)
        with pytest.raises(MlflowException):
            client.search_experiments()
        assert {seen.credential_header for seen in other.requests[before:]} == {None}
        assert not any("authorization" in seen.headers for seen in other.requests)


@pytest.mark.slow
def test_importing_mlflow_loads_its_entry_points_and_nothing_else() -> None:
    """MLflow loads entry points in every process that talks to any server."""
    script = (
        "import mlflow.tracking.request_auth.registry, sys;"
        "heavy = ('tenacity', 'google.auth', 'mlflow_iap_callbacks', 'optuna', 'lightgbm');"
        "print(sorted(name for name in sys.modules if name.startswith(heavy)))"
    )
    done = python_process.run("-c", script, modules=())
    names = ["", ".background", ".background.plugin", ".iap", ".iap.mlflow_plugin"]
    names += [".server", ".server.artifacts"]
    assert done.stdout.strip() == str([f"mlflow_iap_callbacks{name}" for name in names])


@pytest.mark.parametrize("kind", ["answer", "answer_after"])
@pytest.mark.slow
def test_a_run_and_a_model_of_the_fluent_api_are_created_once_if_a_response_is_lost(
    cloud: LocalCloud, kind: FaultKind
) -> None:
    cloud.fault(kind, status=503, path="runs/create")
    cloud.fault(kind, status=503, path="logged-models", method="POST")
    with mlflow.start_run(run_name="one") as run:
        model = mlflow.initialize_logged_model("model")
    assert [each.info.run_id for each in mlflow.search_runs(output_format="list")] == [
        run.info.run_id
    ]
    models = mlflow.search_logged_models(output_format="list")
    assert [each.model_id for each in models] == [model.model_id]


@pytest.mark.parametrize("path", ["experiments/create", "registered-models/create"])
def test_what_has_a_unique_name_is_created_at_a_cold_start(cloud: LocalCloud, path: str) -> None:
    cloud.fault("answer", status=503, path=path)
    name = uuid.uuid4().hex
    if path.startswith("experiments"):
        assert mlflow.set_experiment(name).name == name
    else:
        assert mlflow.MlflowClient().create_registered_model(name).name == name


_TRACE = """
import mlflow

@mlflow.trace
def traced():
    mlflow.update_current_trace(tags={"team": "a"}, metadata={"mlflow.trace.session": "s1"})

with mlflow.start_run() as run:
    traced()
mlflow.flush_trace_async_logging()
info = mlflow.search_traces(return_type="list")[0].info
print(info.tags["team"], info.tags["mlflow.traceName"], info.trace_metadata["mlflow.trace.session"])
print(info.trace_metadata["mlflow.sourceRun"] == run.info.run_id)
"""


@pytest.mark.parametrize("kind", ["answer", "reset_after"])
@pytest.mark.slow
def test_a_trace_has_its_tags_its_session_and_its_run_if_a_response_is_lost(
    cloud: LocalCloud, kind: FaultKind
) -> None:
    cloud.fault(kind, status=503, path="/mlflow/traces", method="POST")
    cloud.fault(kind, status=503, path="/v1/traces", method="POST")
    done = python_process.run("-c", _TRACE)  # in the active experiment, by its variable
    assert done.stdout.splitlines()[-2:] == ["a traced s1", "True"], done.stderr
