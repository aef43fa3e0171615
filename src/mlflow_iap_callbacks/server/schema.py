"""MLflow's tables: checks that they fit this version of MLflow, and migrates them."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Any

from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as mlflow_db
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from . import collations, users_schema
from .database import name_of
from .start_error import StartError, first_line

# A table that exists during a migration; its comment is the revision before. MySQL commits each
# change of a table immediately, so an interrupted migration is left half done.
_MARKER = "mlflow_iap_migration"
_FROM_EMPTY = "empty"
# Seconds to wait for a migration by another process: rewriting 100 million metrics takes minutes.
_LOCK_SECONDS = 600
_RESTORE = (
    "Restore the backup that was taken before it (appengine/README.md, Backup and restore), then "
    "migrate again."
)


class SchemaState(Enum):
    """How a database's tables compare to this version of MLflow."""

    EMPTY = auto()  # no tables
    FOREIGN = auto()  # tables without an MLflow revision
    OLDER = auto()
    CURRENT = auto()
    NEWER = auto()  # a revision that this MLflow does not know
    INTERRUPTED = auto()  # a migration is in progress, was killed or failed


def state_of(engine: Engine, *, has_users: bool) -> SchemaState:
    """Return the state of a database; with `has_users`, include users and permissions."""
    tables = inspect(engine).get_table_names()
    if _MARKER in tables:
        return SchemaState.INTERRUPTED
    if all(name.startswith("alembic_") for name in tables):
        return SchemaState.EMPTY
    revision = mlflow_db._get_schema_version(engine)
    if revision is None:
        return SchemaState.FOREIGN
    found = _compare(ScriptDirectory.from_config(mlflow_db._get_alembic_config("")), revision)
    if found is SchemaState.CURRENT and has_users:
        return _compare(users_schema.scripts(), users_schema.revision_of(engine))
    return found


def require_current(engine: Engine, *, has_users: bool) -> None:
    """Check that this version of MLflow can serve from the database.

    Raises:
        StartError: if it cannot.
    """
    found = state_of(engine, has_users=has_users)
    if found is not SchemaState.CURRENT:
        raise StartError(f"The database {name_of(engine.url)} {_problem(engine, found)}")
    if collations.inexact_tables(engine):
        raise StartError(
            f"The database {name_of(engine.url)} has a collation that considers different names "
            "equal, such as C and c. Back it up, then run "
            "`python -m mlflow_iap_callbacks.server migrate`."
        )


def migrate(engine: Engine, *, has_users: bool) -> bool:
    """Migrate the tables to this version of MLflow, and return whether that changed anything.

    Their collation is migrated too. A lock in the database server lets one process at a time do
    this; the others wait for it.

    Args:
        engine: an engine with one connection, which holds the lock and makes the changes. If it
            breaks, the lock is released only after its last change.
        has_users: whether to include the tables of users and permissions.

    Raises:
        StartError: if the migration cannot begin, or fails.
    """
    lock = f"mlflow-iap {engine.url.database}"[:64]  # MySQL's limit
    if _execute(engine, "SELECT GET_LOCK(:lock, :seconds)", lock=lock, seconds=_LOCK_SECONDS) != 1:
        raise StartError(
            f"Another process has been migrating the database {name_of(engine.url)} for "
            f"{_LOCK_SECONDS} s. Wait for it to end (SHOW PROCESSLIST shows what it does)."
        )
    try:
        return _migrate(engine, has_users)
    finally:
        _execute(engine, "SELECT RELEASE_LOCK(:lock)", lock=lock)


def _migrate(engine: Engine, has_users: bool) -> bool:
    found = state_of(engine, has_users=has_users)
    if found is SchemaState.INTERRUPTED and _is_empty(engine):
        _drop_all(engine)
        found = SchemaState.EMPTY
    if found is SchemaState.CURRENT and not collations.inexact_tables(engine):
        return False
    if found not in (SchemaState.EMPTY, SchemaState.OLDER, SchemaState.CURRENT):
        raise StartError(f"The database {name_of(engine.url)} {_problem(engine, found)}")
    _require_triggers(engine)
    begins = mlflow_db._get_schema_version(engine) or _FROM_EMPTY
    _execute(engine, f"CREATE TABLE {_MARKER} (id INT) COMMENT = '{begins}'")
    try:
        collations.make_exact(engine)
        if found is SchemaState.EMPTY:
            mlflow_db._initialize_tables(engine)
        else:
            mlflow_db._upgrade_db(engine)
        if has_users:
            users_schema.upgrade(engine)
    except (SQLAlchemyError, MlflowException, CommandError) as error:
        reason = first_line(getattr(error, "orig", None) or error)
        again = "Migrate again: it starts over, because the database was empty."
        raise StartError(
            f"The migration of {name_of(engine.url)} from {begins} failed: {reason}. "
            f"{again if found is SchemaState.EMPTY else _RESTORE}"
        ) from None
    _execute(engine, f"DROP TABLE {_MARKER}")
    return True


def _problem(engine: Engine, found: SchemaState) -> str:
    command = "`python -m mlflow_iap_callbacks.server migrate`"
    if found is SchemaState.EMPTY:
        return f"has no tables yet. Run {command}."
    if found is SchemaState.FOREIGN:
        return (
            "has tables, but no MLflow schema version. Use an empty database, or the one that "
            "MLflow has been using."
        )
    if found is SchemaState.INTERRUPTED:
        if _is_empty(engine):
            return f"is in the middle of its first migration. Wait for it, or run {command}."
        return f"is in the middle of a migration. Wait for it if it still runs. If not: {_RESTORE}"
    revision = mlflow_db._get_schema_version(engine)
    if revision == mlflow_db._get_latest_schema_revision():
        revision = f"{users_schema.revision_of(engine) or 'none'} for users"
    if found is SchemaState.OLDER:
        return f"has the older schema {revision}. Back it up, then run {command}."
    return (
        f"has the schema {revision}, which is newer than this MLflow. Deploy the newer MLflow, or "
        "restore the backup that was taken before its migration."
    )


def _is_empty(engine: Engine) -> bool:
    """Whether an interrupted migration was the first one, and nothing has been stored since."""
    inspector = inspect(engine)
    if inspector.get_table_comment(_MARKER)["text"] != _FROM_EMPTY:
        return False
    # Somebody may since have migrated the tables with MLflow's own command.
    kept = {"runs", "registered_models"} & set(inspector.get_table_names())
    return not any(_execute(engine, f"SELECT EXISTS (SELECT 1 FROM {name})") for name in kept)  # noqa: S608


def _drop_all(engine: Engine) -> None:
    _execute(engine, "SET FOREIGN_KEY_CHECKS = 0")
    names = [name for name in inspect(engine).get_table_names() if name != _MARKER]
    for name in (*names, _MARKER):  # the marker last, because it says that this may be repeated
        _execute(engine, f"DROP TABLE `{name}`")
    _execute(engine, "SET FOREIGN_KEY_CHECKS = 1")


def _require_triggers(engine: Engine) -> None:
    """Check that this user may create triggers; otherwise MLflow's migrations fail halfway."""
    with engine.connect() as connection:
        is_logged, is_trusted = connection.execute(
            text("SELECT @@GLOBAL.log_bin, @@GLOBAL.log_bin_trust_function_creators")
        ).one()
        grants = [str(grant) for grant in connection.execute(text("SHOW GRANTS")).scalars()]
    everywhere = re.compile(r"GRANT (ALL PRIVILEGES|.*\bSUPER\b).* ON \*\.\*")
    if is_logged and not is_trusted and not any(map(everywhere.match, grants)):
        raise StartError(
            f"The database {name_of(engine.url)} has binary logging on, so this user may not "
            "create triggers (error 1419). Set its flag log_bin_trust_function_creators=on: "
            "`gcloud sql instances patch INSTANCE "
            "--database-flags=log_bin_trust_function_creators=on`."
        )


def _compare(history: ScriptDirectory, revision: str | None) -> SchemaState:
    if revision == history.get_current_head():
        return SchemaState.CURRENT
    try:
        history.get_revision(revision or "base")
    except CommandError:
        return SchemaState.NEWER
    return SchemaState.OLDER


def _execute(engine: Engine, statement: str, **values: Any) -> Any:
    with engine.begin() as connection:
        result = connection.execute(text(statement), values)
        return result.scalar() if result.returns_rows else None
