"""All that is deployed, here: IAP, the server behind its gate, and a durable database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import set_all
from database_server import MariaDB
from deployed_server import DeployedServer, behind_iap, run, settings
from mlflow_iap_callbacks.local import LocalCloud
from server_database import set_up


@dataclass
class Deployment:
    """What may be killed, and what is in front of it.

    Args:
        cloud: whose variables are set.
        server: behind it.
        mariadb: whose commits survive its kill.
        database: the server's in it.
    """

    cloud: LocalCloud
    server: DeployedServer
    mariadb: MariaDB
    database: str


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    with MariaDB(tmp_path, is_logged=True, is_durable=True) as mariadb:
        set_up(mariadb)
        database = mariadb.new_database_for("mlflow")
        given = settings(mariadb, database, str(tmp_path / "artifacts"))
        assert run("migrate", given).exit_code == 0
        with behind_iap(tmp_path, given) as (cloud, server):
            set_all(monkeypatch, cloud.environment())
            yield Deployment(cloud, server, mariadb, database)
