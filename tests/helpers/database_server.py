"""A database server as a child process, for shared studies and for MLflow's server."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import pymysql
import sqlalchemy
from typing_extensions import Self

from restartable import Restartable
from waiting import wait_until

DEADLINE = 60.0
_CHANGES = ("Com_create_table", "Com_alter_table")


def is_installed() -> bool:
    """Whether Debian's ``mariadb-server`` is installed."""
    return all(shutil.which(name, path=path()) for name in ("mariadbd", "mariadb-install-db"))


class DatabaseServer(Restartable):
    """A server with its data in one folder, and a socket in a folder that only this user can enter.

    Args:
        folder: where the data and the log are stored; they remain at the end.

    Attributes:
        engine: the value of MLFLOW_SERVER_DATABASE_ENGINE.
        socket: path of the socket, named as on Cloud SQL; known once the server runs.
        unavailable: the error of a connection while it does not run.
        stop_signal: the signal that ends it, whoever is connected.
    """

    engine: str
    unavailable: type[Exception]
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._password = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            # Not in the given folder, because the path of a socket must be short.
            short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlflow-iap-db-")))
            (short / "cloudsql").mkdir()
            self.socket = f"{short}/cloudsql/my-project:europe-west4:mlflow"
            self._log = stack.enter_context((self.folder / "database.log").open("w"))
            self.prepare()
            stack.callback(self.stop)
            self.restart()
            self.new_user("optuna", self._password)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @abstractmethod
    def prepare(self) -> None:
        """Create the data folder, with an administrator without a password."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command that starts it."""

    @abstractmethod
    def connect(self, database: str | None = None) -> Any:
        """A connection as administrator, for what lasts as long as the connection."""

    @abstractmethod
    def url(self, user: str, password: str, database: str) -> sqlalchemy.URL:
        """The URL with which a user connects to a database."""

    @abstractmethod
    def new_user(self, name: str, password: str) -> None:
        """Create a user without rights."""

    @abstractmethod
    def new_database_for(self, user: str, collation: str = "") -> str:
        """Create an empty database in which a user has all rights; return its name."""

    @abstractmethod
    def changes(self) -> int:
        """Number of tables that migrations have created or altered, for comparisons."""

    @abstractmethod
    def dump(self, database: str) -> str:
        """Back up a database with the server's own tools."""

    @abstractmethod
    def restore(self, database: str, dump: str) -> None:
        """Restore a database of the user mlflow from a backup."""

    def kill(self) -> None:
        """Kill it, like a crash."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.send_signal(self.stop_signal)
        try:
            self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self) -> None:
        self._process = self.run(self.command())
        wait_until(lambda: self._has_ended or self._answers(), "the database", DEADLINE)
        assert not self._has_ended, Path(self._log.name).read_text()

    def run(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start one of the server's own programs, as the user as whom it may run."""
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "PATH": path()},
            start_new_session=True,  # Ctrl-C must not reach it
            **self.account(),
        )

    def account(self) -> dict[str, Any]:
        """Options of a process with which it runs as another user."""
        return {}

    def new_database(self) -> str:
        """Create an empty database; return its URL for SQLAlchemy."""
        url = self.url("optuna", self._password, self.new_database_for("optuna"))
        return url.render_as_string(hide_password=False)

    def query(
        self, query: str, *values: object, database: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Execute a statement as the server's administrator; return its rows."""
        with self.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return list(cursor.fetchall()) if cursor.description else []

    @property
    def _has_ended(self) -> bool:
        return self._process.poll() is not None

    def _answers(self) -> bool:
        try:
            self.query("SELECT 1")
        except self.unavailable:
            return False
        return True


class MySQLServer(DatabaseServer):
    """A server that speaks MySQL's protocol.

    Attributes:
        collation: a collation that distinguishes all names, as on Cloud SQL.
    """

    engine = "mysql"
    unavailable = pymysql.err.OperationalError
    collation: str

    @abstractmethod
    def preparation(self) -> list[str]:
        """The command that creates the data folder, with an administrator without a password."""

    def prepare(self) -> None:
        assert self.run(self.preparation()).wait(DEADLINE) == 0

    def connect(self, database: str | None = None) -> pymysql.connections.Connection[Any]:
        return pymysql.connect(
            user="root",
            unix_socket=self.socket,
            database=database,
            autocommit=True,
            # So that names are quoted as in other databases.
            init_command="SET sql_mode = CONCAT(@@sql_mode, ',ANSI_QUOTES')",
        )

    def url(self, user: str, password: str, database: str) -> sqlalchemy.URL:
        query = {"unix_socket": self.socket, "charset": "utf8mb4"}
        return sqlalchemy.URL.create(
            "mysql+pymysql", user, password, "localhost", None, database, query
        )

    def new_user(self, name: str, password: str) -> None:
        self.query(f"CREATE USER {name}@localhost IDENTIFIED BY %s", password)

    def new_database_for(self, user: str, collation: str = "") -> str:
        name = f"study_{next(self._numbers)}"
        self.query(f"CREATE DATABASE {name} COLLATE {collation or self.collation}")
        self.query(f"GRANT ALL ON {name}.* TO {user}@localhost")
        return name

    def dump(self, database: str) -> str:
        return self._client("mariadb-dump", "--routines", "--triggers", database)

    def restore(self, database: str, dump: str) -> None:
        self.query(f"DROP DATABASE {database}")
        self.query(f"CREATE DATABASE {database} COLLATE {self.collation}")
        self._client("mariadb", database, given=dump)

    def changes(self) -> int:
        rows = self.query("SHOW GLOBAL STATUS WHERE variable_name IN (%s, %s)", *_CHANGES)
        return sum(int(value) for _, value in rows)

    def _client(self, name: str, *arguments: str, given: str = "") -> str:
        options = ["--no-defaults", "--user=root", f"--socket={self.socket}"]
        return output_of([name, *options, *arguments], given)


class MariaDB(MySQLServer):
    """MariaDB.

        with MariaDB(tmp_path) as server:
            optuna.create_study(storage=server.new_database())

    Args:
        folder: as for `DatabaseServer`.
        is_logged: whether binary logging is on, as with Cloud SQL's point-in-time recovery.
        is_durable: whether commits survive a kill, as on Cloud SQL; they take longer then.
    """

    collation = "utf8mb4_nopad_bin"

    def __init__(self, folder: Path, *, is_logged: bool = False, is_durable: bool = False) -> None:
        super().__init__(folder)
        self._is_logged = is_logged
        self._is_durable = is_durable

    def preparation(self) -> list[str]:
        return [
            *("mariadb-install-db", "--no-defaults", *self._options()),
            *("--auth-root-authentication-method=normal", "--skip-test-db"),
        ]

    def command(self) -> list[str]:
        return [
            *("mariadbd", "--no-defaults", *self._options(), "--skip-networking"),
            *(f"--socket={self.socket}", f"--pid-file={self.folder / 'mariadb.pid'}"),
            *([f"--log-bin={self.folder / 'log'}", "--server-id=1"] * self._is_logged),
            f"--innodb-flush-log-at-trx-commit={int(self._is_durable)}",
        ]

    def _options(self) -> list[str]:
        return [f"--datadir={self.folder / 'data'}", *as_root()]


# As Cloud SQL with point-in-time recovery.
LOGGED_MARIADB = partial(MariaDB, is_logged=True)


def output_of(command: list[str], given: str = "") -> str:
    """What one of a server's own tools prints."""
    done = subprocess.run(
        command,
        input=given,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
        env={**os.environ, "PATH": path()},
    )
    return done.stdout


def as_root() -> list[str]:
    """The options with which such a server runs as root."""
    return ["--user=root"] if os.geteuid() == 0 else []


def path() -> str:
    """The search path, with the folders that Debian leaves out for users."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
