"""The server's start: it finds everything that it needs, or one line says what is missing."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from bucket_emulator import BucketEmulator
from database_server import DatabaseServer, MariaDB
from deployed_server import HOST, PASSWORD, DeployedServer, run, settings
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.server import database
from mlflow_iap_callbacks.server.start_error import StartError
from ports import free_port
from server_database import OLDEST_REVISION, backend, fill, mariadb, needs_mariadb
from variables import set_all
from waiting import wait_until

pytestmark = [needs_mariadb, pytest.mark.slow]
__all__ = ["backend", "mariadb"]

_SECRET = "projects/local-project/secrets/mlflow-database"


@pytest.fixture(scope="module")
def variables(mariadb: MariaDB, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a server with a migrated database, and artifacts in a folder."""
    name = mariadb.new_database_for("mlflow")
    given = settings(mariadb, name, str(tmp_path_factory.mktemp("artifacts")))
    assert run("migrate", given).exit_code == 0
    return given


@pytest.fixture(scope="module")
def server(
    variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DeployedServer]:
    with DeployedServer(tmp_path_factory.mktemp("server"), variables) as server:
        yield server


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"MLFLOW_ARTIFACTS_DESTINATION": ""}, "MLFLOW_ARTIFACTS_DESTINATION is not set."),
        ({"MLFLOW_SERVER_DATABASE_SOCKET": ""}, "MLFLOW_SERVER_DATABASE_HOST are both unset."),
        ({"MLFLOW_SERVER_DATABASE_HOST": "db"}, "MLFLOW_SERVER_DATABASE_HOST are both set."),
        ({"MLFLOW_SERVER_DATABASE_PASSWORD": ""}, "0 database passwords are set."),
        ({"MLFLOW_SERVER_DATABASE_PASSWORD_FILE": "f"}, "2 database passwords are set."),
        ({"MLFLOW_SERVER_DATABASE_WAIT": "soon"}, "'soon' is not a number of seconds"),
        ({"MLFLOW_IAP_AUDIENCE": ""}, "MLFLOW_IAP_AUDIENCE is not set, so every request"),
        ({"MLFLOW_IAP_PERMISSIONS": "true"}, "Set MLFLOW_IAP_ADMINS to one or more e-mails"),
        ({"GAE_SERVICE": ""}, "The host names of this server are unknown"),
        ({"PORT": "http"}, "PORT='http' is not a number from 1 to 65535."),
    ],
)
def test_an_invalid_setting_is_reported_in_one_line(
    variables: dict[str, str], wrong: dict[str, str], message: str
) -> None:
    assert_rejected({"MLFLOW_SERVER_DATABASE_WAIT": "1", **variables, **wrong}, message)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"MLFLOW_SERVER_DATABASE_PASSWORD": "wrong"}, "the user or its password is wrong."),
        ({"MLFLOW_SERVER_DATABASE_USER": "nobody"}, "the user or its password is wrong."),
        ({"MLFLOW_SERVER_DATABASE_NAME": "none"}, "rejects the connection: "),
        ({"MLFLOW_SERVER_DATABASE_SOCKET": "/cloudsql/a:b:c"}, "was not available within 1 s"),
    ],
)
def test_a_database_that_rejects_the_connection_is_reported_in_one_line(
    backend: DatabaseServer, wrong: dict[str, str], message: str
) -> None:
    given = settings(backend, "study_1", "artifacts")
    assert_rejected({**given, "MLFLOW_SERVER_DATABASE_WAIT": "1", **wrong}, message)


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_postgresql_that_is_not_running_yet_is_waited_for(backend: DatabaseServer) -> None:
    given = settings(backend, backend.new_database_for("mlflow"), "artifacts")
    with ThreadPoolExecutor(1) as pool, backend.away():
        waiting = pool.submit(database.connect, database.database_url(given), 60.0)
        silent = {**given, "MLFLOW_SERVER_DATABASE_WAIT": "1"}
        assert_rejected(silent, "was not available within 1 s: ")
        assert not waiting.done()
    assert waiting.result().url.database == given["MLFLOW_SERVER_DATABASE_NAME"]


def test_a_postgresql_that_says_nothing_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        given = {
            "MLFLOW_SERVER_DATABASE_ENGINE": "postgresql",
            "MLFLOW_SERVER_DATABASE_HOST": f"127.0.0.1:{silent.getsockname()[1]}",
            "MLFLOW_SERVER_DATABASE_PASSWORD": PASSWORD,
        }
        with pytest.raises(StartError, match=r"was not available within 1 s: connection timeout"):
            database.connect(database.database_url(given), 1.0)


def test_an_unsuitable_database_is_reported_in_one_line(backend: DatabaseServer) -> None:
    name = backend.new_database_for("mlflow")
    given = settings(backend, name, "artifacts")
    assert_rejected(given, "has no tables yet.")
    fill(backend, name, OLDEST_REVISION)
    assert_rejected(given, f"has the older schema {OLDEST_REVISION}. Back it up, then run")
    backend.query("UPDATE alembic_version SET version_num = 'ffffffffffff'", database=name)
    assert_rejected(given, "has the schema ffffffffffff, which is newer than this MLflow.")


def test_a_statement_that_the_database_rejects_is_reported_in_one_line(
    backend: DatabaseServer,
) -> None:
    name = backend.new_database_for("mlflow")
    fill(backend, name, OLDEST_REVISION)
    backend.query("ALTER TABLE alembic_version RENAME COLUMN version_num TO other", database=name)
    given = settings(backend, name, "artifacts")
    assert_rejected(given, "cannot be used: ")
    migrated = run("migrate", given)
    assert (migrated.exit_code, migrated.output.count("\n")) == (1, 1), migrated.output
    assert "Check that its user mlflow has all privileges" in migrated.output


def test_an_unusable_bucket_is_reported_in_one_line(
    variables: dict[str, str], tmp_path: Path
) -> None:
    given = {**variables, "MLFLOW_ARTIFACTS_DESTINATION": "gs://mlflow-artifacts/a"}
    with BucketEmulator(tmp_path) as bucket:
        here = {**given, **bucket.environment}
        assert "artifacts in gs://mlflow-artifacts/a" in run("check", here).output
        assert_rejected(
            {**here, "MLFLOW_ARTIFACTS_DESTINATION": "gs://no-such-bucket/a"},
            "The bucket no-such-bucket does not exist.",
        )
    nowhere = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{free_port()}"}
    assert_rejected({**given, **nowhere}, "The bucket mlflow-artifacts cannot be reached: ")


def test_the_password_comes_from_secret_manager_or_one_line_says_why_not(
    variables: dict[str, str], google_cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, {"GOOGLE_APPLICATION_CREDENTIALS": str(google_cloud.key_file())})
    given = {
        **variables,
        "MLFLOW_SERVER_DATABASE_PASSWORD": "",
        "MLFLOW_SERVER_DATABASE_PASSWORD_SECRET": f"{_SECRET}/versions/latest",
    }
    assert_rejected(given, "Secret Manager responded with 404. Create it with")
    google_cloud.secrets[_SECRET] = f"{PASSWORD}\n"  # echo adds the newline
    assert run("check", given).exit_code == 0
    google_cloud.secret_readers.clear()
    assert_rejected(given, "Secret Manager responded with 403. Grant this server's service")
    name = {"MLFLOW_SERVER_DATABASE_PASSWORD_SECRET": "mlflow-database"}
    assert_rejected({**given, **name}, "is not the name of a secret's version.")


def test_on_cloud_run_it_responds_to_both_host_names_of_the_service(
    variables: dict[str, str],
) -> None:
    here = {"GAE_SERVICE": "", "GAE_VERSION": "", "GOOGLE_CLOUD_PROJECT": "", "K_SERVICE": "mlflow"}
    audience = "/projects/123456789012/locations/us-central1/services/mlflow"
    name = {
        "MLFLOW_SERVER_HOSTS": "mlflow-k2x7qv3z4a-uc.a.run.app",
        "MLFLOW_IAP_AUDIENCE": audience,
    }
    found = run("check", {**variables, **here, **name})
    assert f"accepts assertions of IAP for {audience}\n" in found.stdout
    names = "mlflow-k2x7qv3z4a-uc.a.run.app, mlflow-123456789012.us-central1.run.app"
    assert f"responds to {names}\n" in found.stdout


def test_a_database_that_allows_fewer_connections_than_the_server_opens_is_reported(
    variables: dict[str, str],
) -> None:
    found = run("check", {**variables, "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "10"})
    assert "this server opens up to 100 under load\n" in found.stdout
    found = run("check", {**variables, "MLFLOW_WORKERS": "100"})
    assert "up to 12100 under load: requests that get none fail. Set the database" in found.stdout


@pytest.mark.parametrize(("service", "seconds"), [({}, 25), ({"K_SERVICE": "mlflow"}, 8)])
def test_after_sigterm_requests_have_most_of_the_time_before_the_kill(
    variables: dict[str, str], service: dict[str, str], seconds: int
) -> None:
    found = run("check", {**variables, **service})
    assert f"--timeout-graceful-shutdown {seconds}\n" in found.stdout


def test_a_server_that_cannot_start_exits_with_status_1_and_no_traceback(
    variables: dict[str, str],
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_iap_callbacks.server", "serve"],
        env={**os.environ, **variables, "MLFLOW_SERVER_DATABASE_PASSWORD": "wrong"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "wrong" not in done.stderr.replace("password is wrong", "")


def test_the_password_is_not_in_the_list_of_processes_or_the_log(server: DeployedServer) -> None:
    requests.get(f"{server.url}/api/2.0/mlflow/experiments/get", headers={"Host": HOST}, timeout=30)
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True)
    assert f"{server.process.pid} " in listed.stdout
    for text in (listed.stdout, server.log.read_text()):
        for written in (PASSWORD, "p%40ss", "w0rd"):
            assert written not in text


def test_the_started_process_becomes_the_server(server: DeployedServer) -> None:
    command = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().split(b"\0")
    assert command[2:4] == [b"mlflow", b"server"]


def test_two_workers_run_on_uvloop_and_nothing_else_runs(server: DeployedServer) -> None:
    workers = [pid for pid in server.processes if "uvloop" in mapped_files(pid)]
    assert len(workers) == 2
    # mlflow, uvicorn, its workers, and Python's resource tracker: no job runners.
    assert len(server.processes) <= 5


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        (HOST, None, 200),
        (HOST, f"https://{HOST}", 200),
        (f"v1-dot-{HOST}", f"https://v1-dot-{HOST}", 200),
        ("mlflow-dot-my-project.appspot.com", None, 200),
        ("v1-dot-mlflow-dot-my-project.appspot.com", None, 200),
        (f"v2-dot-{HOST}", None, 403),
        (f"{HOST}.evil.com", None, 403),
        ("10.evil.com", None, 403),
        ("127.0.0.1", None, 403),
        ("localhost", None, 403),
        (HOST, "https://evil.com", 403),
        (HOST, f"http://{HOST}", 403),
        (HOST, "null", 403),
    ],
)
def test_it_responds_only_to_its_own_host_names_and_origins(
    server: DeployedServer, host: str, origin: str | None, status: int
) -> None:
    headers = {"Host": host, **({"Origin": origin} if origin else {})}
    response = requests.post(
        f"{server.url}/api/2.0/mlflow/experiments/search",
        json={"max_results": 1},
        headers=headers,
        timeout=30,
    )
    assert response.status_code == status
    health = requests.get(f"{server.url}/health", headers={"Host": "10.0.0.1"}, timeout=30)
    assert health.status_code == 200, "App Engine's health checks use the IP address"


def test_headers_without_an_end_are_refused_before_they_fill_the_memory(
    server: DeployedServer,
) -> None:
    begin, piece, sent = b"GET / HTTP/1.1\r\nHost: a\r\n", b"X: %s\r\n" % (b"a" * 10_000), 0
    address = "127.0.0.1", int(server.url.rpartition(":")[2])
    with socket.create_connection(address, 30) as connection:
        connection.sendall(begin)
        with contextlib.suppress(ConnectionError):
            while sent < 100_000_000:
                connection.sendall(piece)
                sent += len(piece)
    assert sent < 20_000_000  # what the buffers of both ends can hold


def test_more_concurrent_requests_than_mlflow_has_connections_all_succeed(
    mariadb: MariaDB, server: DeployedServer, variables: dict[str, str]
) -> None:
    """MLflow's own 15 for each worker are too few if each request needs a second one."""
    mariadb.query("SET GLOBAL max_connections = 1000")  # as on Cloud SQL
    waiting = "SELECT COUNT(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for %'"

    def post(path: str, **content: object) -> requests.Response:
        url = f"{server.url}/api/2.0/mlflow/{path}"
        return requests.post(url, json=content, headers={"Host": HOST}, timeout=60)

    experiment = post("experiments/create", name="busy").json()["experiment_id"]

    created = [post("runs/create", experiment_id=experiment).json() for _ in range(64)]

    def log(number: int) -> int:
        """Send the request that takes most connections, because its sessions are nested."""
        run_id = created[number]["run"]["info"]["run_id"]
        metrics = [{"key": "auc", "value": number, "timestamp": 1, "step": 0}]
        tags = [{"key": "number", "value": str(number)}]
        return post("runs/log-batch", run_id=run_id, metrics=metrics, tags=tags).status_code

    with ThreadPoolExecutor(64) as pool, mariadb.connect() as connection:
        hold = connection.cursor()
        hold.execute(f"LOCK TABLES {variables['MLFLOW_SERVER_DATABASE_NAME']}.runs WRITE")
        answers = pool.map(log, range(64))
        wait_until(lambda: mariadb.query(waiting)[0][0] >= 40, "more than 2 * 15 requests wait")
        hold.execute("UNLOCK TABLES")
    assert set(answers) == {200}


def assert_rejected(variables: Mapping[str, str], message: str) -> None:
    failed = run("check", variables)
    assert (failed.exit_code, len(failed.output.splitlines())) == (1, 1), failed.output
    assert message in failed.output


def mapped_files(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()
