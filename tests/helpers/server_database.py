"""Shared by the server's tests: MariaDB with binary logging, PostgreSQL, and their databases."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import sqlalchemy
from alembic import command
from mlflow.store.db import utils as mlflow_db
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
from packaging.version import Version

import database_server
from database_server import LOGGED_MARIADB, DatabaseServer, MariaDB
from deployed_server import FORKED, PASSWORD, begin, set_up, settings
from waiting import wait_until

# The revision of MLflow 3.5, the oldest version that the package supports.
OLDEST_REVISION = "bf29a5ff90ea"

PINNED = re.findall(
    r"^mlflow\[auth\]==(.+)$",
    (Path(__file__).parents[2] / "appengine" / "requirements.in").read_text(),
    re.MULTILINE,
)[0]

needs_mariadb = pytest.mark.skipif(
    not database_server.is_installed() or Version(mlflow.__version__) < Version(PINNED),
    reason=f"needs Debian's mariadb-server, and MLflow {PINNED} as in the image",
)


@pytest.fixture(scope="module")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    with MariaDB(tmp_path_factory.mktemp("mariadb"), is_logged=True) as server:
        set_up(server)
        yield server


@pytest.fixture(scope="module", params=["mariadb", "postgresql"])
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DatabaseServer]:
    """Each kind of database in turn, as `mlflow server --backend-store-uri` names it."""
    if request.param == "mariadb":
        yield request.getfixturevalue("mariadb")
        return
    with KINDS[request.param]()(tmp_path_factory.mktemp("postgresql")) as server:
        set_up(server)
        yield server


def _postgresql() -> Callable[..., DatabaseServer]:
    """PostgreSQL, or skip the test if it is not available."""
    pytest.importorskip("psycopg")
    import postgresql_server

    if not postgresql_server.is_installed():
        pytest.skip("Debian's postgresql is not installed")
    return postgresql_server.PostgreSQL


# Functions that return what starts a server.
KINDS: dict[str, Callable[[], Callable[..., DatabaseServer]]] = {
    "mariadb": lambda: LOGGED_MARIADB,
    "postgresql": _postgresql,
}


def variables(server: DatabaseServer, database: str) -> dict[str, str]:
    """The environment variables of a server whose artifacts do not matter."""
    return settings(server, database, "artifacts")


def url_of(server: DatabaseServer, database: str) -> sqlalchemy.URL:
    """The URL with which the server's user connects to a database."""
    return server.url("mlflow", PASSWORD, database)


def text_of(server: DatabaseServer, database: str) -> str:
    """The URL as MLflow accepts it."""
    return url_of(server, database).render_as_string(hide_password=False)


def fill(server: DatabaseServer, database: str, revision: str) -> None:
    """Create MLflow's tables as of a revision."""
    engine = sqlalchemy.create_engine(url_of(server, database))
    InitialBase.metadata.create_all(engine)
    config = mlflow_db._get_alembic_config(str(engine.url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def log_a_run(server: DatabaseServer, database: str) -> None:
    """Insert an experiment with a run with one metric, into any version of MLflow's schema."""
    for statement in (
        "INSERT INTO experiments (name, lifecycle_stage) VALUES ('kept', 'active')",
        "INSERT INTO runs (run_uuid, name, status, lifecycle_stage, experiment_id) "
        "SELECT 'r1', 'kept', 'FINISHED', 'active', experiment_id FROM experiments",
        'INSERT INTO metrics (run_uuid, "key", value, timestamp, step, is_nan) '
        "VALUES ('r1', 'auc', 0.5, 1, 0, FALSE)",
    ):
        server.query(statement, database=database)


def is_the_run_there(server: DatabaseServer, database: str) -> bool:
    """Whether what `log_a_run` logged is unchanged."""
    return server.query("SELECT run_uuid, value FROM metrics", database=database) == [("r1", 0.5)]


def kill_in_the_middle(server: DatabaseServer, database: str, changes: int) -> None:
    """Migrate, and kill -9 when this many tables were created or altered."""
    before = server.changes()
    process = begin("migrate", variables(server, database), program=FORKED)
    wait_until(
        lambda: server.changes() - before >= changes or process.poll() is not None,
        "the middle of a migration",
        60,
    )
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was too fast"
