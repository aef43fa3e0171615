"""All that is deployed, here: IAP, the server behind its gate, and a durable database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from database_server import MariaDB
from deployed_server import DeployedServer, behind_iap, run, settings
from mlflow_iap_callbacks.local import LocalCloud
from server_database import set_up


@dataclass
class Deployment:
    """What may be killed, and what is in front of it.

    Args:
        cloud: in front.
        server: behind it.
        mariadb: whose commits survive its kill.
        database: the server's in it.
        artifacts: their folder.
    """

    cloud: LocalCloud
    server: DeployedServer
    mariadb: MariaDB
    database: str
    artifacts: Path


@contextmanager
def deployed(folder: Path) -> Iterator[Deployment]:
    """Run all of it, with what it keeps in a folder: artifacts in ``artifacts``."""
    with MariaDB(folder, is_logged=True, is_durable=True) as mariadb:
        set_up(mariadb)
        database = mariadb.new_database_for("mlflow")
        given = settings(mariadb, database, str(folder / "artifacts"))
        assert run("migrate", given).exit_code == 0
        with behind_iap(folder, given) as (cloud, server):
            yield Deployment(cloud, server, mariadb, database, folder / "artifacts")
