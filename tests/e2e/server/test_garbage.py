"""`gc` deletes what users deleted, in the database and in the bucket, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mlflow.entities import LoggedModelStatus
from mlflow.store.artifact import artifact_repository_registry
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service import utils

from bucket_emulator import BucketEmulator
from database_server import DatabaseServer
from deployed_server import run, settings
from mlflow_iap_callbacks.server.__main__ import main
from server_database import backend, mariadb, needs_mariadb, text_of
from variables import set_all

pytestmark = [needs_mariadb, pytest.mark.slow]
__all__ = ["backend", "mariadb"]


@pytest.fixture(autouse=True)
def _settings_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores what `gc` changes in its process: where MLflow finds runs and artifacts."""
    registry = artifact_repository_registry._artifact_repository_registry
    monkeypatch.setattr(registry, "_registry", {**registry._registry})
    monkeypatch.setattr(utils, "_tracking_uri", utils._tracking_uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


def test_gc_deletes_old_garbage_with_its_artifacts_and_keeps_everything_else(
    backend: DatabaseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = backend.new_database_for("mlflow")
    with BucketEmulator(tmp_path) as bucket:
        set_all(monkeypatch, bucket.environment)
        artifacts = f"gs://{bucket.bucket}/artifacts"
        given = {**settings(backend, database, artifacts), **bucket.environment}
        assert run("migrate", given).exit_code == 0
        store = SqlAlchemyStore(text_of(backend, database), "mlflow-artifacts:/")
        experiment, gone = store.create_experiment("kept"), store.create_experiment("gone")
        runs = [store.create_run(each, "ada", 1, [], "r") for each in (experiment,) * 3 + (gone,)]
        kept, old, young, of_experiment = runs
        models = [store.create_logged_model(experiment, name) for name in ("kept", "old")]
        for model in models:
            store.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        uris = [each.info.artifact_uri for each in runs]
        uris += [model.artifact_location for model in models]
        for uri in uris:
            upload(uri.replace("mlflow-artifacts:", artifacts), tmp_path)
        for each in (old, young):
            store.delete_run(each.info.run_id)
        store.delete_logged_model(models[1].model_id)
        store.delete_experiment(gone)
        age(backend, database, f"runs SET deleted_time = 1 WHERE run_uuid = '{old.info.run_id}'")
        age(backend, database, "logged_models SET last_updated_timestamp_ms = 1")
        age(backend, database, f"experiments SET last_update_time = 1 WHERE experiment_id = {gone}")
        age(backend, database, f"runs SET deleted_time = 1 WHERE experiment_id = {gone}")

        done = gc(given)
        assert done.exit_code == 0, done.output
        assert len(bucket.names()) == 3, "of the kept run and model, and of the young run"
        assert {
            row[0] for row in backend.query("SELECT run_uuid FROM runs", database=database)
        } == {
            kept.info.run_id,
            young.info.run_id,
        }
        assert [row.name for row in store.search_experiments()] == ["kept", "Default"]
        assert of_experiment.info.run_id in done.output
        store.restore_run(young.info.run_id)  # which `gc` must not have touched
        store.delete_run(young.info.run_id)

        assert gc(given, "--older-than", "0s").exit_code == 0
        assert len(bucket.names()) == 2
        again = gc(given, "--older-than", "0s")
        assert (again.exit_code, again.output) == (0, "")


def test_gc_of_a_database_with_an_older_schema_is_reported_in_one_line(
    backend: DatabaseServer, tmp_path: Path
) -> None:
    database = backend.new_database_for("mlflow")
    failed = gc(settings(backend, database, str(tmp_path)))
    assert (failed.exit_code, len(failed.output.splitlines())) == (1, 1)
    assert "has no tables yet" in failed.output


def gc(variables: dict[str, str], *options: str) -> Result:
    return CliRunner(env=variables).invoke(main, ["gc", *options])


def upload(uri: str, folder: Path) -> None:
    (folder / "model.txt").write_text("content")
    get_artifact_repository(uri).log_artifact(str(folder / "model.txt"))


def age(server: DatabaseServer, database: str, change: str) -> None:
    server.query(f"UPDATE {change}", database=database)
