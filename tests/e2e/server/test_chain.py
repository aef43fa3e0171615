"""The whole chain from a key file to the database and the bucket, also with each link broken."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightgbm as lgb
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import deployed_server
from deployment import PROGRAM, SERVER_ACCOUNT, Deployment
from lightgbm_helpers import PARAMS, sets
from mlflow_iap_callbacks import (
    IAPCredentials,
    IAPCredentialsError,
    IAPLightGBMCallback,
    IAPMlflowClient,
    IAPRefusedError,
    IAPUnavailableError,
)
from mlflow_iap_callbacks.local import LocalCloud
from server_database import KINDS, needs_mariadb
from variables import set_all

pytestmark = [needs_mariadb, pytest.mark.slow]

_32_MB = 32 * 1024 * 1024
_200_MB = 200_000_000


@pytest.fixture(scope="module", params=["mariadb"])
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    kind = KINDS[request.param]()
    with Deployment(folder, program=deployed_server.FORKED, backend=kind) as deployment:
        yield deployment


def on_each_database(test: Any) -> Any:
    return pytest.mark.parametrize("deployment", list(KINDS), indirect=True)(test)


@pytest.fixture
def cloud(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCloud]:
    """An IAP for one test, with the environment variables of its user."""
    with deployment.new_cloud() as cloud:
        set_all(monkeypatch, cloud.environment())
        yield cloud


@pytest.fixture
def client(cloud: LocalCloud) -> IAPMlflowClient:
    """A client that gives up soon."""
    return IAPMlflowClient(deadline=1.0)


@on_each_database
def test_training_with_a_key_file_is_stored_in_the_database_and_the_bucket(
    deployment: Deployment, cloud: LocalCloud
) -> None:
    experiment = uuid.uuid4().hex
    kept: dict[str, Any] = {}
    train, valid = sets()
    with IAPLightGBMCallback(experiment_name=experiment) as callback:
        booster = lgb.train(
            PARAMS,
            train,
            20,
            valid_sets=[valid],
            valid_names=["valid"],
            callbacks=[lgb.record_evaluation(kept), callback],
        )
        callback.finish(booster)
    assert callback.flush()

    def query(query: str, *values: object) -> list[tuple[Any, ...]]:
        return deployment.backend.query(query, *values, database=deployment.database)

    ((run_id, experiment_id, owner, status),) = query(
        "SELECT run_uuid, runs.experiment_id, user_id, status FROM runs "
        "JOIN experiments ON experiments.experiment_id = runs.experiment_id "
        "WHERE experiments.name = %s",
        experiment,
    )
    assert (owner, status) == (cloud.trainer, "FINISHED")
    tag = "SELECT value FROM tags WHERE run_uuid = %s AND \"key\" = 'mlflow.user'"
    assert query(tag, run_id) == [(cloud.trainer,)]
    points = query(
        "SELECT step, value FROM metrics "
        "WHERE run_uuid = %s AND \"key\" = 'valid-binary_logloss' ORDER BY step",
        run_id,
    )
    assert points == list(enumerate(kept["valid"]["binary_logloss"]))
    files = f"artifacts/{experiment_id}/{run_id}/artifacts/lightgbm/"
    assert f"{files}feature_importance.csv" in deployment.bucket.names()
    assert {seen.account for seen in cloud.requests if seen.reached_upstream} == {cloud.trainer}


@on_each_database
def test_the_server_gets_its_password_and_the_public_keys_from_google(
    deployment: Deployment, client: IAPMlflowClient
) -> None:
    client.search_experiments()
    asked = {(seen.path, seen.account) for seen in deployment.cloud.google_requests}
    secret = "/v1/projects/local-project/secrets/mlflow-database/versions/latest:access"
    assert (secret, SERVER_ACCOUNT) in asked
    assert ("/iap/verify/public_key", None) in asked


def test_an_artifact_of_200_mb_passes_the_limit_of_32_mb_for_a_request(
    deployment: Deployment, cloud: LocalCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This uses MLflow's own client, with only this package's authentication plugin."""
    file = tmp_path / "model.bin"
    file.write_bytes(os.urandom(_200_MB))
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_artifact(run_id, str(file), "model")
    client.log_text(run_id, "small", "model/notes.txt")
    listed = {item.path: item.file_size for item in client.list_artifacts(run_id, "model")}
    assert listed == {"model/model.bin": _200_MB, "model/notes.txt": 5}
    down = client.download_artifacts(run_id, "model/model.bin", str(tmp_path / "down"))
    assert digest(Path(down)) == digest(file)
    assert not [name for name in deployment.bucket.names() if ".uploads" in name]
    assert max(seen.body_bytes for seen in cloud.requests) < _32_MB
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    client.log_artifact(run_id, str(file), "in-one")
    assert 413 in [seen.status for seen in cloud.requests]  # so it was sent in parts after all
    assert [item.file_size for item in client.list_artifacts(run_id, "in-one")] == [_200_MB]


# --- each link broken ------------------------------------------------------------------------


def test_the_error_for_a_missing_key_file_names_it(
    client: IAPMlflowClient, cloud: LocalCloud
) -> None:
    file = cloud.key_file()
    file.unlink()
    with pytest.raises(IAPCredentialsError, match=f"{re.escape(str(file))}.* cannot be read"):
        client.search_experiments()


def test_a_deleted_key_is_reported_by_google_and_by_iap(
    client: IAPMlflowClient, cloud: LocalCloud
) -> None:
    cloud.delete_key()
    with pytest.raises(IAPCredentialsError, match="The key was deleted or belongs to"):
        client.search_experiments()
    IAPMlflowClient(credentials=IAPCredentials(kind="signed_jwt"))
    with pytest.raises(IAPRefusedError, match="The key or its account was deleted"):
        client.search_experiments()


def test_the_error_for_an_account_without_iaps_role_names_both(
    client: IAPMlflowClient, cloud: LocalCloud
) -> None:
    cloud.members.clear()
    with pytest.raises(IAPRefusedError, match=f"{cloud.trainer} .*iap.httpsResourceAccessor"):
        client.search_experiments()


def test_the_gate_rejects_an_assertion_signed_with_an_unknown_key(
    client: IAPMlflowClient, cloud: LocalCloud
) -> None:
    cloud.rotate_assertion_key()
    with pytest.raises(MlflowException, match="no valid assertion of Identity-Aware Proxy"):
        client.search_experiments()


def test_a_missing_artifact_is_reported_without_a_retry(
    deployment: Deployment, cloud: LocalCloud, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = IAPMlflowClient()
    run_id = client.create_run("0").info.run_id
    cloud.forget()
    with pytest.raises(MlflowException):
        client.download_artifacts(run_id, "none.txt", str(tmp_path))
    assert re.search(r"404, .*There is no artifact \S+/none\.txt", caplog.text)
    assert [seen.status for seen in cloud.requests if "none.txt" in seen.path].count(404) == 1


def test_a_client_that_bypasses_iap_gets_an_error_that_says_to_use_it(
    deployment: Deployment,
) -> None:
    with pytest.raises(MlflowException, match="the address that Identity-Aware Proxy protects"):
        IAPMlflowClient(deployment.url).search_experiments()


@on_each_database
def test_an_unavailable_database_is_reported_and_used_once_it_is_back(
    deployment: Deployment, client: IAPMlflowClient
) -> None:
    with (
        deployment.backend.away(),
        pytest.raises(MlflowException, match=r"TEMPORARILY_UNAVAILABLE: .*(MySQL|connection)"),
    ):
        client.search_experiments()
    assert client.search_experiments()


def test_an_unavailable_bucket_is_reported_and_used_once_it_is_back(
    deployment: Deployment, client: IAPMlflowClient
) -> None:
    run_id = client.create_run("0").info.run_id
    message = f"The bucket {deployment.bucket.bucket} cannot be reached"
    with deployment.bucket.away(), pytest.raises(requests.HTTPError, match=message):
        client.log_text(run_id, "text", "notes.txt")
    client.log_text(run_id, "text", "notes.txt")
    assert [file.path for file in client.list_artifacts(run_id)] == ["notes.txt"]


def test_an_unavailable_server_is_reported_by_googles_front_end(
    deployment: Deployment, client: IAPMlflowClient
) -> None:
    message = "answered 502 .* in place of MLflow: no instance of the server could be reached"
    with deployment.server.away(), pytest.raises(IAPUnavailableError, match=message):
        client.search_experiments()
    assert client.search_experiments()


def test_the_program_says_what_to_install_if_mariadb_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM],
        env={**os.environ, "PATH": str(Path(sys.executable).parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "`apt-get install mariadb-server`" in done.stderr


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
