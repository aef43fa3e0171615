"""A MariaDB server as a child process: for shared studies, and for MLflow's server."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql

from waiting import wait_until

_DEADLINE = 60.0


def is_installed() -> bool:
    """Whether Debian's ``mariadb-server`` is there."""
    return all(shutil.which(name, path=_path()) for name in ("mariadbd", "mariadb-install-db"))


class MariaDB:
    """MariaDB with its data in one folder, reached by a socket in a folder that only we can enter.

        with MariaDB(tmp_path) as server:
            optuna.create_study(storage=server.new_database())

    Args:
        folder: for the data and the log; kept at the end.
        is_logged: whether it writes a binary log and has the flag that MLflow's migrations need
            then, as appengine/README.md sets Cloud SQL up.

    Attributes:
        socket: its path, named as Cloud SQL names it; known once it runs.
    """

    def __init__(self, folder: Path, *, is_logged: bool = False) -> None:
        self._folder = folder
        self._log = folder / "mariadb.log"
        self._is_logged = is_logged
        self._password = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> MariaDB:
        with contextlib.ExitStack() as stack:
            # Not in the folder given: the path of a socket has to be short.
            short = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlflow-iap-db-"))
            (Path(short) / "cloudsql").mkdir()
            self.socket = f"{short}/cloudsql/my-project:europe-west4:mlflow"
            self._install()
            self._start()
            stack.callback(self._end)
            self.new_user("optuna", self._password)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Ended until the block ends."""
        self._end()
        try:
            yield
        finally:
            self._start()

    def new_database(self) -> str:
        """Make an empty database; return its URL for SQLAlchemy."""
        name = self.new_database_for("optuna")
        return (
            f"mysql+pymysql://optuna:{self._password}@localhost/{name}"
            f"?unix_socket={self.socket}&charset=utf8mb4"
        )

    def new_user(self, name: str, password: str) -> None:
        """Make a user without rights."""
        self.query(f"CREATE USER {name}@localhost IDENTIFIED BY %s", password)

    def new_database_for(self, user: str, collation: str = "utf8mb4_nopad_bin") -> str:
        """Make an empty database that a user may do all in; return its name."""
        name = f"study_{next(self._numbers)}"
        self.query(f"CREATE DATABASE {name} COLLATE {collation}")
        self.query(f"GRANT ALL ON {name}.* TO {user}@localhost")
        return name

    def query(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Carry out a statement as the server's administrator; return its rows."""
        connection = pymysql.connect(user="root", unix_socket=self.socket, autocommit=True)
        with connection, connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return list(cursor.fetchall())

    def dump(self, database: str) -> str:
        """Back a database up, by what its own tools are for that."""
        return self._tool("mariadb-dump", "--routines", "--triggers", database)

    def restore(self, database: str, dump: str) -> None:
        """Bring a database back to what it was."""
        self.query(f"DROP DATABASE {database}")
        self.query(f"CREATE DATABASE {database} COLLATE utf8mb4_nopad_bin")
        self._tool("mariadb", database, given=dump)

    def _tool(self, name: str, *arguments: str, given: str = "") -> str:
        done = subprocess.run(
            [name, "--no-defaults", "--user=root", f"--socket={self.socket}", *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=True,
            timeout=_DEADLINE,
            env={**os.environ, "PATH": _path()},
        )
        return done.stdout

    def _install(self) -> None:
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        installing = self._begin("mariadb-install-db", *options)
        assert installing.wait(_DEADLINE) == 0, self._log.read_text()

    def _start(self) -> None:
        logged = [f"--log-bin={self._folder / 'log'}", "--server-id=1"]
        logged += ["--log-bin-trust-function-creators=1"]
        self._process = self._begin(
            *("mariadbd", "--skip-networking", f"--socket={self.socket}"),
            f"--pid-file={self._folder / 'mariadb.pid'}",
            *(logged if self._is_logged else ()),
            # Commits need not survive a crash of the machine.
            "--innodb-flush-log-at-trx-commit=0",
        )
        try:
            wait_until(lambda: self._has_ended or self._answers(), "MariaDB", _DEADLINE)
            assert not self._has_ended, self._log.read_text()
        except BaseException:
            self._end()
            raise

    def _begin(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        as_root = ["--user=root"] if os.geteuid() == 0 else []
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [name, "--no-defaults", f"--datadir={self._folder / 'data'}", *as_root, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": _path()},
                start_new_session=True,  # Ctrl-C is not for it
            )

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _has_ended(self) -> bool:
        return self._process.poll() is not None

    def _answers(self) -> bool:
        try:
            self.query("SELECT 1")
        except pymysql.err.OperationalError:
            return False
        return True


def _path() -> str:
    """With what Debian puts outside of a user's."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
