"""A MariaDB server as a child process, for studies that several processes work on."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

import pymysql

from conftest import wait_until

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
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._password = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> MariaDB:
        with contextlib.ExitStack() as stack:
            # Not in the folder given: the path of a socket has to be short.
            short = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlflow-iap-db-"))
            self._socket = f"{short}/socket"
            self._start(stack)
            self._query(f"CREATE USER optuna@localhost IDENTIFIED BY '{self._password}'")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def new_database(self) -> str:
        """Make an empty database; return its URL for SQLAlchemy."""
        name = f"study_{next(self._numbers)}"
        self._query(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        self._query(f"GRANT ALL ON {name}.* TO optuna@localhost")
        return (
            f"mysql+pymysql://optuna:{self._password}@localhost/{name}"
            f"?unix_socket={self._socket}&charset=utf8mb4"
        )

    def _start(self, stack: contextlib.ExitStack) -> None:
        as_root = ["--user=root"] if os.geteuid() == 0 else []
        data = f"--datadir={self._folder / 'data'}"
        log = stack.enter_context((self._folder / "mariadb.log").open("w"))
        environment = {**os.environ, "PATH": _path()}
        subprocess.run(
            [
                *("mariadb-install-db", "--no-defaults", data, *as_root),
                *("--auth-root-authentication-method=normal", "--skip-test-db"),
            ],
            stdout=log,
            stderr=log,
            check=True,
            timeout=_DEADLINE,
            env=environment,
        )
        server = subprocess.Popen(
            [
                *("mariadbd", "--no-defaults", data, *as_root, "--skip-networking"),
                *(f"--socket={self._socket}", f"--pid-file={self._folder / 'mariadb.pid'}"),
                # Commits need not survive a crash of the machine.
                "--innodb-flush-log-at-trx-commit=0",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        )
        stack.callback(_end, server)
        wait_until(lambda: server.poll() is not None or self._answers(), "MariaDB", _DEADLINE)
        assert server.poll() is None, (self._folder / "mariadb.log").read_text()

    def _answers(self) -> bool:
        try:
            self._query("SELECT 1")
        except pymysql.err.OperationalError:
            return False
        return True

    def _query(self, query: str) -> None:
        connection = pymysql.connect(user="root", unix_socket=self._socket)
        with connection, connection.cursor() as cursor:
            cursor.execute(query)


def _path() -> str:
    """With what Debian puts outside of a user's."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(_DEADLINE)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
