"""MySQL and MariaDB as the database of MLflow's tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pymysql.constants import ER
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError

from . import collations
from .database_kind import CONNECT_TIMEOUT, DatabaseKind, execute

# Errors that do not go away by waiting, by code.
_PERMANENT = {
    ER.ACCESS_DENIED_ERROR: (
        "the user or its password is wrong. Set the user's password to the secret's text "
        "(`gcloud sql users set-password`)."
    ),
    ER.DBACCESS_DENIED_ERROR: "the user has no privileges on it. Grant them.",
    ER.BAD_DB_ERROR: "no database has this name. Create it: `gcloud sql databases create`.",
}
_OTHER_SOCKET = ".s.PGSQL."  # how the name of PostgreSQL's socket begins
# MySQL's plain "utf8" lacks all characters of more than three bytes.
_CHARSET = {"charset": "utf8mb4"}


class MySQL(DatabaseKind):
    """MySQL and MariaDB, which commit each change of a table's definition immediately."""

    name = "MySQL"
    # Pure Python, so there is nothing to compile and no system library to keep patched. With
    # mysqlclient (C), the server handled 0.9 and 1.2 times as many requests in two runs of
    # `make server-bench`.
    driver = "mysql+pymysql"
    timeouts: ClassVar[Mapping[str, int]] = dict.fromkeys(
        ("connect_timeout", "read_timeout", "write_timeout"), CONNECT_TIMEOUT
    )
    show_processes = "SHOW PROCESSLIST"
    is_transactional = False

    def at_socket(self, url: URL, socket: str) -> URL:
        return url.set(host="localhost", query={**_CHARSET, "unix_socket": socket})

    def at_address(self, url: URL, ca: str) -> URL:
        verified = {"ssl_ca": ca, "ssl_check_hostname": "false"} if ca else {}
        return url.set(query={**_CHARSET, **verified})

    def permanent_problem(self, url: URL, error: DBAPIError) -> str | None:
        socket = Path(str(url.query.get("unix_socket", "")))
        if socket.name.startswith(_OTHER_SOCKET) or list(socket.glob(f"{_OTHER_SOCKET}*")):
            return "it is PostgreSQL. Set MLFLOW_SERVER_DATABASE_ENGINE=postgresql."
        return _PERMANENT.get(_code_and_text(error)[0])

    def is_login_rejected(self, error: Exception) -> bool:
        return error.args[:1] == (ER.ACCESS_DENIED_ERROR,)

    def reason(self, error: DBAPIError) -> str:
        return _code_and_text(error)[1]

    def lock(self, engine: Engine, seconds: int) -> bool:
        statement = "SELECT GET_LOCK(:lock, :seconds)"
        return bool(execute(engine, statement, lock=_lock_of(engine), seconds=seconds) == 1)

    def unlock(self, engine: Engine) -> None:
        execute(engine, "SELECT RELEASE_LOCK(:lock)", lock=_lock_of(engine))

    def drop(self, engine: Engine, tables: list[str]) -> None:
        execute(engine, "SET FOREIGN_KEY_CHECKS = 0")
        for name in tables:
            execute(engine, f"DROP TABLE `{name}`")
        execute(engine, "SET FOREIGN_KEY_CHECKS = 1")

    def migration_problem(self, engine: Engine) -> str | None:
        """Return the problem if this user may not create triggers, as MLflow's migrations do."""
        with engine.connect() as connection:
            is_logged, is_trusted = connection.execute(
                text("SELECT @@GLOBAL.log_bin, @@GLOBAL.log_bin_trust_function_creators")
            ).one()
            grants = [str(grant) for grant in connection.execute(text("SHOW GRANTS")).scalars()]
        everywhere = re.compile(r"GRANT (ALL PRIVILEGES|.*\bSUPER\b).* ON \*\.\*")
        if not is_logged or is_trusted or any(map(everywhere.match, grants)):
            return None
        return (
            "has binary logging on, so this user may not create triggers (error 1419). Set its "
            "flag log_bin_trust_function_creators=on: `gcloud sql instances patch INSTANCE "
            "--database-flags=log_bin_trust_function_creators=on`."
        )

    def text_problem(self, engine: Engine) -> str | None:
        if not collations.inexact_tables(engine):
            return None
        return (
            "has a collation that considers different names equal, such as C and c. Back it up, "
            "then run `python -m mlflow_iap_callbacks.server migrate`."
        )

    def make_exact(self, engine: Engine) -> None:
        collations.make_exact(engine)

    def max_connections(self, engine: Engine) -> int:
        return int(execute(engine, "SELECT @@GLOBAL.max_connections"))


def _lock_of(engine: Engine) -> str:
    return f"mlflow-iap {engine.url.database}"[:64]  # MySQL's limit


def _code_and_text(error: DBAPIError) -> tuple[int, str]:
    code, *rest = error.orig.args if error.orig is not None else (0,)
    return code if isinstance(code, int) else 0, str(rest[-1] if rest else code).rstrip(".")
