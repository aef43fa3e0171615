"""The database that environment variables name."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from mlflow_iap_callbacks.local.certificates import self_signed
from mlflow_iap_callbacks.server import database
from mlflow_iap_callbacks.server.database import database_url, kind_of, name_of
from mlflow_iap_callbacks.server.mysql import MySQL
from mlflow_iap_callbacks.server.start_error import StartError

_POSTGRESQL = {"MLFLOW_SERVER_DATABASE_ENGINE": "postgresql"}
_FAILED = "connection failed: connection to server failed: FATAL:  "
_PASSWORD = {"MLFLOW_SERVER_DATABASE_PASSWORD": "pw"}


@pytest.mark.parametrize(
    ("given", "host", "port", "shown"),
    [
        ("10.1.2.3", "10.1.2.3", None, "10.1.2.3"),
        ("db.example:3307", "db.example", 3307, "db.example:3307"),
        ("fd00::5", "fd00::5", None, "[fd00::5]"),
        ("[fd00::5]", "fd00::5", None, "[fd00::5]"),
        ("[fd00::5]:3307", "fd00::5", 3307, "[fd00::5]:3307"),
        ("::1", "::1", None, "[::1]"),
    ],
)
def test_a_host_is_a_name_or_an_address_with_or_without_a_port(
    given: str, host: str, port: int | None, shown: str
) -> None:
    url = database_url({**_PASSWORD, "MLFLOW_SERVER_DATABASE_HOST": given})
    assert (url.host, url.port) == (host, port)
    assert name_of(url) == f"mlflow at {shown}"


@pytest.mark.parametrize(
    "given",
    [
        *("db:99999", "db:x", "db:", "mysql://db", "user@db", "a b", "db:1:2"),
        *("[fd00::5", "[db]:1", "[]:1", "fd00::5]:1", "fd00::x"),
        *("db..example", "d" * 64, "xn--\u00e4", "db:\u0663"),
    ],
)
def test_a_malformed_host_is_an_error(given: str) -> None:
    with pytest.raises(StartError, match=r"Set it to HOST or HOST:PORT"):
        database_url({**_PASSWORD, "MLFLOW_SERVER_DATABASE_HOST": given})


def test_the_connection_to_an_address_is_verified_with_the_given_certificates(
    tmp_path: Path,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "ca.pem").write_bytes(self_signed("server CA", key))
    given = {**_PASSWORD, "MLFLOW_SERVER_DATABASE_CA": str(tmp_path / "ca.pem")}
    given["MLFLOW_SERVER_DATABASE_HOST"] = "10.1.2.3"
    assert arguments(given)["ssl"] == {"ca": str(tmp_path / "ca.pem"), "check_hostname": False}
    found = arguments(given | _POSTGRESQL)
    assert (found["sslmode"], found["sslrootcert"]) == ("verify-ca", str(tmp_path / "ca.pem"))
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(StartError, match=r"ca\.pem has no certificates"):
        database_url(given)
    del given["MLFLOW_SERVER_DATABASE_HOST"]
    assert database_url({**given, "MLFLOW_SERVER_DATABASE_SOCKET": "/cloudsql/a:b:c"})


@pytest.mark.parametrize(
    ("given", "port"),
    [
        ("/cloudsql/a:b:c", None),
        ("/cloudsql/a:b:c/.s.PGSQL.5432", 5432),
        ("/run/postgresql/.s.PGSQL.5433", 5433),
    ],
)
def test_the_socket_of_postgresql_is_named_by_its_folder_or_its_path(
    given: str, port: int | None
) -> None:
    variables = {**_PASSWORD, **_POSTGRESQL, "MLFLOW_SERVER_DATABASE_SOCKET": given}
    folder = given.partition("/.s")[0]
    found = arguments(variables)
    assert (found["host"], found.get("port")) == (folder, port)
    # MLflow gets it as text.
    url = database_url(variables)
    assert make_url(url.render_as_string(hide_password=False)) == url
    assert name_of(url) == f"mlflow at {folder}"


@pytest.mark.parametrize("engine", ["mysql", "postgresql"])
def test_a_socket_without_its_whole_path_is_an_error(engine: str) -> None:
    given = {"MLFLOW_SERVER_DATABASE_ENGINE": engine, "MLFLOW_SERVER_DATABASE_SOCKET": "cloudsql/a"}
    with pytest.raises(StartError, match=r"is 'cloudsql/a'\. Set it to the whole path"):
        database_url({**_PASSWORD, **given})


def test_an_address_of_postgresql_has_its_host_and_port() -> None:
    found = arguments({**_PASSWORD, **_POSTGRESQL, "MLFLOW_SERVER_DATABASE_HOST": "[fd00::5]:6432"})
    assert (found["host"], found["port"], found["user"]) == ("fd00::5", 6432, "mlflow")


def test_an_unknown_engine_is_an_error() -> None:
    given = {"MLFLOW_SERVER_DATABASE_ENGINE": "postgres", "MLFLOW_SERVER_DATABASE_HOST": "db"}
    with pytest.raises(StartError, match=r"Set it to mysql or postgresql\."):
        database_url({**_PASSWORD, **given})


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ('password authentication failed for user "mlflow"', "the user or its password is wrong"),
        ('role "mlflow" does not exist', "the user or its password is wrong"),
        ('role "mlflow" is not permitted to log in', "the user or its password is wrong"),
        ('database "mlflow" does not exist', "no database has this name"),
        ('permission denied for database "mlflow"', "no privileges"),
        ('no pg_hba.conf entry for host "10.1.2.3", no encryption', "this kind of connection"),
        ("server does not support SSL, but SSL was required", "this kind of connection"),
        ("SSL error: certificate verify failed", "is not from the CA"),
        ("received invalid response to SSL negotiation: J", "it is not PostgreSQL"),
        ("the database system is starting up", None),
        ("sorry, too many clients already", None),
        ('too many connections for role "mlflow"', None),
        ("Connection refused", None),
    ],
)
def test_waiting_for_postgresql_ends_at_an_error_that_does_not_go_away(
    said: str, problem: str | None
) -> None:
    url = database_url({**_PASSWORD, **_POSTGRESQL, "MLFLOW_SERVER_DATABASE_HOST": "db"})
    error = OperationalError(None, None, Exception(_FAILED + said))
    found = kind_of(url).permanent_problem(url, error)
    assert found is None if problem is None else problem in (found or "")


@pytest.mark.parametrize("name", ["", "/.s.PGSQL.5432"])
def test_the_socket_of_postgresql_is_not_taken_for_that_of_mysql(tmp_path: Path, name: str) -> None:
    (tmp_path / ".s.PGSQL.5432").touch()
    url = database_url({**_PASSWORD, "MLFLOW_SERVER_DATABASE_SOCKET": f"{tmp_path}{name}"})
    with pytest.raises(StartError, match=r"it is PostgreSQL\. Set MLFLOW_SERVER_DATABASE_ENGINE"):
        database.connect(url, 0.1)


def test_a_database_that_accepts_connections_and_says_nothing_is_an_error_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MySQL, "timeouts", dict.fromkeys(MySQL.timeouts, 0.05))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        url = database_url({**_PASSWORD, "MLFLOW_SERVER_DATABASE_HOST": host})
        with pytest.raises(StartError, match=r"was not available within 0.1 s: .* \(timed out\)"):
            database.connect(url, 0.1)


def arguments(environment: Mapping[str, str]) -> Any:
    """The arguments with which the driver connects."""
    url = database_url(environment)
    return url.get_dialect()().create_connect_args(url)[1]
