"""The tables of MLflow's users and permissions, which have their own schema revisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, event, inspect

_VERSION_TABLE = "alembic_version_auth"


def scripts() -> ScriptDirectory:
    """Return the migrations. MLflow's own function for that imports its whole server."""
    return ScriptDirectory(
        str(Path(mlflow.__file__).parent / "server" / "auth" / "db" / "migrations")
    )


def revision_of(engine: Engine) -> str | None:
    """Return the tables' revision; None if they do not exist, or are older than MLflow 3.6."""
    with engine.connect() as connection:
        return _context(connection).get_current_revision()


def upgrade(engine: Engine) -> None:
    """Migrate the tables to the newest revision, on the engine's own connection."""
    history = scripts()
    with engine.begin() as connection:
        event.listen(connection, "before_cursor_execute", _without_constraint_name, retval=True)
        context = _context(connection)
        is_unversioned = context.get_current_revision() is None
        if is_unversioned and inspect(connection).has_table("users"):
            context.stamp(history, history.get_base() or "base")
        with EnvironmentContext(
            Config(), history, fn=lambda found, _: history._upgrade_revs("head", found)
        ) as environment:
            environment.configure(connection=connection, version_table=_VERSION_TABLE)
            with environment.begin_transaction():
                environment.run_migrations()


def _context(connection: Connection) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"version_table": _VERSION_TABLE})


def _without_constraint_name(
    _: Connection, __: object, statement: str, parameters: Any, *___: object
) -> tuple[str, Any]:
    """Remove a foreign key's name that two tables share; MySQL requires unique names."""
    # github.com/mlflow/mlflow/issues/9642, from 2023
    return statement.replace("CONSTRAINT fk_user_id FOREIGN KEY", "FOREIGN KEY"), parameters
