"""The database that environment variables name."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mlflow_iap_callbacks.local.certificates import self_signed
from mlflow_iap_callbacks.server import database
from mlflow_iap_callbacks.server.database import database_url, name_of
from mlflow_iap_callbacks.server.start_error import StartError

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
    ],
)
def test_another_form_of_a_host_is_an_error(given: str) -> None:
    with pytest.raises(StartError, match=r"Set it to HOST or HOST:PORT"):
        database_url({**_PASSWORD, "MLFLOW_SERVER_DATABASE_HOST": given})


def test_the_connection_to_an_address_is_verified_with_the_given_certificates(
    tmp_path: Path,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "ca.pem").write_bytes(self_signed("server CA", key))
    given = {**_PASSWORD, "MLFLOW_SERVER_DATABASE_CA": str(tmp_path / "ca.pem")}
    url = database_url({**given, "MLFLOW_SERVER_DATABASE_HOST": "10.1.2.3"})
    _, options = url.get_dialect()().create_connect_args(url)
    assert options["ssl"] == {"ca": str(tmp_path / "ca.pem"), "check_hostname": False}
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(StartError, match=r"ca\.pem has no certificates"):
        database_url({**given, "MLFLOW_SERVER_DATABASE_HOST": "10.1.2.3"})
    assert database_url({**given, "MLFLOW_SERVER_DATABASE_SOCKET": "/cloudsql/a:b:c"})


def test_a_database_that_accepts_connections_and_says_nothing_is_an_error_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "_TIMEOUTS", dict.fromkeys(database._TIMEOUTS, 0.05))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        url = database_url({**_PASSWORD, "MLFLOW_SERVER_DATABASE_HOST": host})
        with pytest.raises(StartError, match=r"did not respond within 0.1 s: .* \(timed out\)"):
            database.connect(url, 0.1)
