"""The steps in appengine/README.md that move an existing MLflow server to this one."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
import sqlalchemy
from click.testing import CliRunner
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db import utils as mlflow_db
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from bucket_emulator import BucketEmulator
from database_server import DatabaseServer
from deployed_server import HOST, DeployedServer, run, settings
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.server.__main__ import main
from ports import free_port
from server_database import backend, mariadb, needs_mariadb, text_of
from server_helpers import ASSERTION
from variables import set_all

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore as AuthStore

pytestmark = [needs_mariadb, pytest.mark.slow]
__all__ = ["backend", "mariadb"]

_SQL = Path(__file__).parents[3] / "appengine" / "move_artifacts.sql"


def test_runs_artifacts_and_permissions_of_another_server_are_there_after_the_move(
    backend: DatabaseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BucketEmulator(tmp_path) as bucket, LocalCloud() as cloud:
        set_all(monkeypatch, bucket.environment)
        # The other server does not serve artifacts itself. MariaDB's collation ignores case.
        collation = ["utf8mb4_general_ci"] * (backend.engine == "mysql")
        other = backend.new_database_for("mlflow", *collation)
        engine = sqlalchemy.create_engine(text_of(backend, other))
        mlflow_db._initialize_tables(engine)
        engine.dispose()
        root = f"gs://{bucket.bucket}/old"
        store = SqlAlchemyStore(text_of(backend, other), root)
        experiment = store.create_experiment("churn")
        logged = store.create_run(experiment, "ada", 1, [], "first").info
        (tmp_path / "model.txt").write_text("content")
        get_artifact_repository(logged.artifact_uri).log_artifact(str(tmp_path / "model.txt"))
        old_users = f"sqlite:///{tmp_path / 'basic_auth.db'}"
        if backend.engine == "postgresql":  # MLflow itself cannot create these tables in MySQL
            old_users = text_of(backend, backend.new_database_for("mlflow"))
        users = AuthStore()
        users.init_db(old_users)
        for name, is_admin in (("admin", True), ("Ada", False), ("eve@example.org", False)):
            users.create_user(name, "a password of 12", is_admin=is_admin)
        users.grant_user_permission("Ada", "experiment", experiment, "EDIT")

        # The steps: the database, the files, their names in the database, the users.
        database = backend.new_database_for("mlflow")
        backend.restore(database, backend.dump(other))
        copied = f"gs://{bucket.bucket}/artifacts/{experiment}/{logged.run_id}/artifacts"
        get_artifact_repository(copied).log_artifact(str(tmp_path / "model.txt"))
        given = {
            **settings(backend, database, f"gs://{bucket.bucket}/artifacts"),
            **bucket.environment,
            **cloud.server_environment(),
            "MLFLOW_IAP_PERMISSIONS": "true",
            "MLFLOW_IAP_ADMINS": "root@example.com",
            "MLFLOW_IAP_DEFAULT_PERMISSION": "NO_PERMISSIONS",
            "MLFLOW_WORKERS": "1",
        }
        assert run("migrate", given).stdout == "The schema has been migrated.\n"
        name_artifacts(backend, database, root)
        moved = CliRunner(env=given).invoke(
            main, ["move-users", old_users, "--domain", "example.com"]
        )
        assert moved.output.splitlines() == [
            "admin@example.com",
            "ada@example.com",
            "eve@example.org",
        ]

        with DeployedServer(tmp_path, given, gated_port=free_port()) as server:

            def get(email: str, path: str) -> requests.Response:
                headers = {ASSERTION: cloud.assertion(email), "Host": HOST}
                url = f"{server.url}/api/2.0/mlflow/{path}"
                return requests.get(url, headers=headers, timeout=30)

            path = f"artifacts/list?run_id={logged.run_id}"
            listed = get("ada@example.com", path).json()
            assert [file["path"] for file in listed["files"]] == ["model.txt"]
            assert listed["root_uri"].startswith("mlflow-artifacts:/")
            for stranger in ("eve@example.org", "admin@example.com"):
                assert get(stranger, path).status_code == 403
            assert get("root@example.com", path).status_code == 200


def test_artifacts_of_all_kinds_are_named_as_this_server_does_and_no_others(
    backend: DatabaseServer,
) -> None:
    database = backend.new_database_for("mlflow")
    assert run("migrate", settings(backend, database, "artifacts")).exit_code == 0
    root = "gs://old_bucket/mlflow"
    store = SqlAlchemyStore(text_of(backend, database), root)
    experiment = store.create_experiment("moved")
    logged = store.create_run(experiment, "ada", 1, [], "r").info
    model = store.create_logged_model(experiment, "m")
    registry = RegistryStore(text_of(backend, database))
    registry.create_registered_model("churn")
    for source in (f"{model.artifact_location}", "gs://old_bucket/mlflow-2/m"):
        registry.create_model_version("churn", source)
    store.create_experiment("elsewhere", artifact_location="gs://oldxbucket/mlflow/9")
    name_artifacts(backend, database, root)

    place = f"mlflow-artifacts:/{experiment}"
    assert store.get_experiment(experiment).artifact_location == place
    assert store.get_run(logged.run_id).info.artifact_uri == f"{place}/{logged.run_id}/artifacts"
    moved = store.get_logged_model(model.model_id).artifact_location
    assert moved == f"{place}/models/{model.model_id}/artifacts"
    assert registry.get_model_version("churn", "1").source == moved
    assert registry.get_model_version("churn", "2").source == "gs://old_bucket/mlflow-2/m"
    elsewhere = store.get_experiment_by_name("elsewhere")
    assert elsewhere is not None
    assert elsewhere.artifact_location == "gs://oldxbucket/mlflow/9"


def test_users_move_once_and_new_ones_can_follow(backend: DatabaseServer, tmp_path: Path) -> None:
    database = backend.new_database_for("mlflow")
    given = {
        **settings(backend, database, str(tmp_path)),
        "MLFLOW_IAP_PERMISSIONS": "true",
        "MLFLOW_IAP_ADMINS": "root@example.com",
    }
    assert run("migrate", given).exit_code == 0
    old = f"sqlite:///{tmp_path / 'basic_auth.db'}"
    users = AuthStore()
    users.init_db(old)
    users.create_user("ada", "a password of 12", is_admin=True)
    users.grant_user_permission("ada", "experiment", "7", "EDIT")
    arguments = ["move-users", old, "--domain", "example.com"]
    assert CliRunner(env=given).invoke(main, arguments).output == "ada@example.com\n"
    again = CliRunner(env=given).invoke(main, arguments)
    assert (again.exit_code, len(again.output.splitlines())) == (1, 1)
    assert "has users already" in again.output
    here = AuthStore()
    here.init_db(text_of(backend, database))
    assert not here.get_user("ada@example.com").is_admin
    assert here.get_experiment_permission("7", "ada@example.com").permission == "EDIT"
    assert here.create_user("eve@example.com", "a password of 12").id > 1


def test_users_who_would_have_the_same_email_are_reported(
    backend: DatabaseServer, tmp_path: Path
) -> None:
    database = backend.new_database_for("mlflow")
    given = {
        **settings(backend, database, str(tmp_path)),
        "MLFLOW_IAP_PERMISSIONS": "true",
        "MLFLOW_IAP_ADMINS": "root@example.com",
    }
    assert run("migrate", given).exit_code == 0
    old = f"sqlite:///{tmp_path / 'basic_auth.db'}"
    users = AuthStore()
    users.init_db(old)
    for name in ("ada", "ADA@example.com"):
        users.create_user(name, "a password of 12")
    done = CliRunner(env=given).invoke(main, ["move-users", old, "--domain", "example.com"])
    assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
    assert "Several users would become ada@example.com." in done.output
    assert backend.query("SELECT COUNT(*) FROM users", database=database) == [(0,)]


def name_artifacts(server: DatabaseServer, database: str, root: str) -> None:
    """Execute appengine/move_artifacts.sql."""
    for statement in _SQL.read_text().replace("{OLD_ROOT}", root).split(";\n"):
        if statement.strip():
            server.query(statement, database=database)
