"""Runs PostgreSQL as a child process; as root, as Debian's user for it, because it refuses root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import psycopg
import sqlalchemy
from psycopg import sql

from database_server import DEADLINE, DatabaseServer, output_of

_USER = "postgres"
# The administrator needs no password, as the socket is in a folder that others cannot enter.
_LOGINS = f"local all {_USER} trust\nlocal all all scram-sha-256\n"


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, which Debian does not put into the search path."""
    found = [Path(path).parent for path in [shutil.which("postgres")] if path]
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_version)
    return next(iter([*found, *(path.parent for path in reversed(newest))]), None)


def is_installed() -> bool:
    """Whether PostgreSQL can be run by this user."""
    return programs() is not None and (os.geteuid() != 0 or _account() is not None)


class PostgreSQL(DatabaseServer):
    """PostgreSQL.

    Args:
        folder: as for `DatabaseServer`; as root, without the data.
        is_durable: whether commits survive a crash of the machine; they take longer then.
    """

    engine = "postgresql"
    unavailable = psycopg.OperationalError
    stop_signal = signal.SIGINT  # on SIGTERM, it waits until everybody has disconnected

    def __init__(self, folder: Path, *, is_durable: bool = False) -> None:
        super().__init__(folder)
        self._is_durable = is_durable

    def prepare(self) -> None:
        short = Path(self.socket).parents[1]
        Path(self.socket).mkdir()
        self._data = short / "data"
        if account := self.account():
            for folder in (short, *short.rglob("*")):
                shutil.chown(folder, account["user"], account["group"])
        command = [f"{programs()}/initdb", "-D", str(self._data), "-U", _USER, "-E", "UTF8"]
        initialized = self.run([*command, "--no-locale", "--auth=trust", "--no-sync"])
        assert initialized.wait(DEADLINE) == 0, Path(self._log.name).read_text()
        (self._data / "pg_hba.conf").write_text(_LOGINS)

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": self.socket,
            "synchronous_commit": "on" if self._is_durable else "off",
            "fsync": "on" if self._is_durable else "off",
            "max_connections": "400",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [f"{programs()}/postgres", "-D", str(self._data), *options]

    def account(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        account = _account()
        assert account is not None
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": "/"}

    def kill(self) -> None:
        # Its processes too, so that it can be started again at once.
        children = psutil.Process(self._process.pid).children()
        super().kill()
        for child in children:
            child.kill()
        psutil.wait_procs(children)

    def connect(self, database: str | None = None) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=self.socket, user=_USER, dbname=database or "postgres", autocommit=True
        )

    def url(self, user: str, password: str, database: str) -> sqlalchemy.URL:
        query = {"host": self.socket}
        return sqlalchemy.URL.create(
            "postgresql+psycopg", user, password, database=database, query=query
        )

    def new_user(self, name: str, password: str) -> None:
        statement = sql.SQL("CREATE USER {} PASSWORD {}")
        with self.connect() as connection:
            connection.execute(statement.format(sql.Identifier(name), sql.Literal(password)))

    def new_database_for(self, user: str, collation: str = "C") -> str:
        name = f"study_{next(self._numbers)}"
        options = f"TEMPLATE template0 LC_COLLATE '{collation}'"
        self.query(f"CREATE DATABASE {name} OWNER {user} {options}")
        return name

    def dump(self, database: str) -> str:
        return self._client("pg_dump", "--no-owner", database)

    def restore(self, database: str, dump: str) -> None:
        self.query(f"DROP DATABASE {database}")
        self.query(f"CREATE DATABASE {database} OWNER mlflow TEMPLATE template0 LC_COLLATE 'C'")
        self._client("psql", "-v", "ON_ERROR_STOP=1", database, given=f"SET ROLE mlflow;\n{dump}")

    def changes(self) -> int:
        """Number of tables that are locked by a migration, which shows none before its end."""
        locks = "SELECT COUNT(DISTINCT relation) FROM pg_locks WHERE mode = 'AccessExclusiveLock'"
        return int(self.query(locks)[0][0])

    def _client(self, name: str, *arguments: str, given: str = "") -> str:
        command = [name, f"--host={self.socket}", f"--username={_USER}"]
        return output_of([*command, *arguments], given)


def _account() -> pwd.struct_passwd | None:
    return next((each for each in pwd.getpwall() if each.pw_name == _USER), None)


def _version(program: Path) -> float:
    return float(program.parents[1].name)
