"""PostgreSQL as the database of MLflow's tables: Cloud SQL's, AlloyDB, or another one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from sqlalchemy import URL, Engine
from sqlalchemy.exc import DBAPIError

from .database_kind import CONNECT_TIMEOUT, DatabaseKind, execute
from .start_error import first_line

_OLDEST = 12  # major version; the first one with nondeterministic collations
_LOCK = 0x6D6C_666C_6F77  # "mlflow"; PostgreSQL's advisory locks are numbers
_LOCK_NOT_AVAILABLE = "55P03"
_SOCKET = re.compile(r"(?P<folder>.+)/\.s\.PGSQL\.(?P<port>\d+)")
# Errors that do not go away by waiting. They have no code, because the login has not succeeded.
_PERMANENT = (
    (
        re.compile(r"password authentication failed|role .* (does not exist|is not permitted)"),
        "the user or its password is wrong. Set the user's password to the secret's text "
        "(`gcloud sql users set-password`).",
    ),
    (
        re.compile(r"permission denied for database"),
        "the user has no privileges on it. Grant them.",
    ),
    (
        re.compile(r"database .* does not exist"),
        "no database has this name. Create it: `gcloud sql databases create`.",
    ),
    (
        re.compile(r"no pg_hba\.conf entry|server does not support SSL"),
        "it does not accept this kind of connection. Compare its encryption settings and its "
        "pg_hba.conf with MLFLOW_SERVER_DATABASE_CA.",
    ),
    (
        re.compile(r"certificate verify failed"),
        "its certificate is not from the CA in MLFLOW_SERVER_DATABASE_CA. Download the server CA "
        "again.",
    ),
    (
        re.compile(r"invalid response to SSL negotiation"),
        "it is not PostgreSQL. Set MLFLOW_SERVER_DATABASE_ENGINE=mysql if it is MySQL.",
    ),
)
# Columns of text in which different names may be equal: with a nondeterministic collation, or of
# a type that ignores case (citext) or spaces at the end (char).
_INEXACT = """
SELECT relname || '.' || attname
FROM pg_attribute
JOIN pg_class ON pg_class.oid = attrelid
JOIN pg_type ON pg_type.oid = atttypid
LEFT JOIN pg_collation ON pg_collation.oid = attcollation
WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
AND relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped
AND (NOT collisdeterministic OR typcategory = 'S' AND
    COALESCE(NULLIF(typbasetype, 0), pg_type.oid) NOT IN ('text'::regtype, 'varchar'::regtype))
ORDER BY 1 LIMIT 1
"""


class PostgreSQL(DatabaseKind):
    """PostgreSQL, in which changes of a table's definition are part of a transaction."""

    name = "PostgreSQL"
    driver = "postgresql+psycopg"
    timeouts: ClassVar[Mapping[str, int]] = {"connect_timeout": CONNECT_TIMEOUT}
    show_processes = "SELECT * FROM pg_stat_activity"
    is_transactional = True

    def at_socket(self, url: URL, socket: str) -> URL:
        # Cloud SQL's documentation names the folder for some drivers, and the socket for others.
        found = _SOCKET.fullmatch(socket)
        return url.set(
            port=int(found["port"]) if found else None,
            query={"host": found["folder"] if found else socket},
        )

    def at_address(self, url: URL, ca: str) -> URL:
        verified = {"sslmode": "verify-ca", "sslrootcert": ca} if ca else {}
        # Seconds; by default, an address that drops packets takes two minutes.
        return url.set(query={"connect_timeout": "10", **verified})

    def permanent_problem(self, url: URL, error: DBAPIError) -> str | None:
        said = str(error.orig)
        return next((problem for kind, problem in _PERMANENT if kind.search(said)), None)

    def is_login_rejected(self, error: Exception) -> bool:
        # The driver gives no code when a connection fails.
        return "password authentication failed" in str(error)

    def reason(self, error: DBAPIError) -> str:
        return first_line(error.orig or error)

    def lock(self, engine: Engine, seconds: int) -> bool:
        # Both are for the session, whatever the database's flags are, as a migration may take long.
        execute(engine, "SET statement_timeout = 0")
        execute(engine, f"SET lock_timeout = '{seconds}s'")
        try:
            execute(engine, f"SELECT pg_advisory_lock({_LOCK})")
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            return False
        return True

    def unlock(self, engine: Engine) -> None:
        execute(engine, f"SELECT pg_advisory_unlock({_LOCK})")

    def drop(self, engine: Engine, tables: list[str]) -> None:
        for name in tables:
            execute(engine, f'DROP TABLE "{name}" CASCADE')

    def migration_problem(self, engine: Engine) -> str | None:
        if problem := self.text_problem(engine):
            return problem
        if execute(engine, "SELECT has_schema_privilege(current_schema(), 'CREATE')"):
            return None
        return (
            "has no schema in which this user may create tables. Make the user its owner: "
            f"`ALTER DATABASE {engine.url.database} OWNER TO {engine.url.username}`."
        )

    def text_problem(self, engine: Engine) -> str | None:
        version = int(execute(engine, "SHOW server_version_num")) // 10_000
        if version < _OLDEST:
            return f"is in PostgreSQL {version}. Use PostgreSQL {_OLDEST} or later."
        encoding = execute(engine, "SHOW server_encoding")
        if encoding != "UTF8":
            return (
                f"has the encoding {encoding}, which lacks many characters. Create a database "
                "with ENCODING 'UTF8' TEMPLATE template0, and move the tables there."
            )
        column = execute(engine, _INEXACT)
        if column is None:
            return None
        return (
            f"may consider different names equal in {column}, such as C and c. Back it up, then "
            "give the column the type varchar or text, and a deterministic collation: `ALTER "
            'TABLE ... ALTER COLUMN ... TYPE varchar(LENGTH) COLLATE "default"`.'
        )

    def make_exact(self, engine: Engine) -> None:
        """Change nothing: MLflow's migrations create exact columns, and others are rejected."""

    def max_connections(self, engine: Engine) -> int:
        reserved = "SHOW superuser_reserved_connections"
        return int(execute(engine, "SHOW max_connections")) - int(execute(engine, reserved))
