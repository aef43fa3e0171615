"""MLflow's tables: checks that they fit this version of MLflow, and migrates them."""

from __future__ import annotations

from enum import Enum, auto

from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as mlflow_db
from sqlalchemy import Column, Engine, Integer, MetaData, Table, inspect
from sqlalchemy.exc import SQLAlchemyError

from . import users_schema
from .database import kind_of, name_of
from .database_kind import execute
from .start_error import StartError, first_line

# A table that exists during a migration that could be left half done. Its comment is the revision
# before the migration. PostgreSQL undoes an interrupted migration, except that of an empty
# database.
_MARKER = "mlflow_iap_migration"
_FROM_EMPTY = "empty"
# Seconds to wait for another process to migrate: rewriting 100 million metrics takes minutes.
_LOCK_SECONDS = 600
_RESTORE = (
    "Restore the backup that was taken before it (appengine/README.md, Backup and restore), then "
    "migrate again."
)


class SchemaState(Enum):
    """How a database's tables compare to this version of MLflow."""

    EMPTY = auto()  # no tables
    FOREIGN = auto()  # tables without a revision of MLflow's
    OLDER = auto()
    CURRENT = auto()
    NEWER = auto()  # a revision that this MLflow does not know
    INTERRUPTED = auto()  # a migration is in progress, was killed or failed


def state_of(engine: Engine, *, has_users: bool) -> SchemaState:
    """Return the state of a database; `has_users` includes the tables of users and permissions."""
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
    if problem := kind_of(engine.url).text_problem(engine):
        raise StartError(f"The database {name_of(engine.url)} {problem}")


def migrate(engine: Engine, *, has_users: bool) -> bool:
    """Migrate the tables to this version of MLflow, and return whether that changed anything.

    In MySQL, their collation is converted too. A lock in the database server lets only one process
    at a time do this; the others wait for it.

    Args:
        engine: an engine with one connection, which holds the lock and makes the changes. If the
            connection breaks, the lock is released only after its last change.
        has_users: whether to include the tables of users and permissions.

    Raises:
        StartError: if the migration cannot begin, or fails.
    """
    kind = kind_of(engine.url)
    if not kind.lock(engine, _LOCK_SECONDS):
        raise StartError(
            f"Another process has been migrating the database {name_of(engine.url)} for "
            f"{_LOCK_SECONDS} s. Wait until it ends ({kind.show_processes} shows what it is doing)."
        )
    try:
        return _migrate(engine, has_users)
    finally:
        kind.unlock(engine)


def _migrate(engine: Engine, has_users: bool) -> bool:
    kind = kind_of(engine.url)
    found = state_of(engine, has_users=has_users)
    if found is SchemaState.INTERRUPTED and _is_empty(engine):
        # The marker is dropped last: as long as it exists, the tables may be dropped again.
        names = [name for name in inspect(engine).get_table_names() if name != _MARKER]
        kind.drop(engine, [*names, _MARKER])
        found = SchemaState.EMPTY
    if found is SchemaState.CURRENT and not kind.text_problem(engine):
        return False
    if found not in (SchemaState.EMPTY, SchemaState.OLDER, SchemaState.CURRENT):
        raise StartError(f"The database {name_of(engine.url)} {_problem(engine, found)}")
    if problem := kind.migration_problem(engine):
        raise StartError(f"The database {name_of(engine.url)} {problem}")
    begins = mlflow_db._get_schema_version(engine) or _FROM_EMPTY
    marker = Table(_MARKER, MetaData(), Column("id", Integer), comment=begins)
    is_marked = found is SchemaState.EMPTY or not kind.is_transactional
    if is_marked:
        marker.create(engine)
    try:
        kind.make_exact(engine)
        if found is SchemaState.EMPTY:
            mlflow_db._initialize_tables(engine)
        else:
            mlflow_db._upgrade_db(engine)
        if has_users:
            users_schema.upgrade(engine)
        kind.make_exact(engine)  # MLflow's migrations give some columns a collation of their own
    except (SQLAlchemyError, MlflowException, CommandError) as error:
        reason = first_line(getattr(error, "orig", None) or error)
        advice = _RESTORE
        if found is SchemaState.EMPTY:
            advice = "Solve this, then migrate again: that starts over with the empty database."
        elif kind.is_transactional:
            advice = "Nothing is left half done: solve this, then migrate again."
        raise StartError(
            f"The migration of {name_of(engine.url)} from {begins} failed: {reason}. {advice}"
        ) from None
    if is_marked:
        marker.drop(engine)
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
            return (
                "is in the middle of its first migration. Wait for it if it is still running. If "
                f"not, run {command}."
            )
        return (
            "is in the middle of a migration. Wait for it if it is still running. If not: "
            f"{_RESTORE}"
        )
    revision = mlflow_db._get_schema_version(engine)
    if revision == mlflow_db._get_latest_schema_revision():
        revision = f"for users, revision {users_schema.revision_of(engine) or 'none'}"
    if found is SchemaState.OLDER:
        return f"has the older schema {revision}. Back it up, then run {command}."
    return (
        f"has the schema {revision}, which is newer than this MLflow. Deploy the newer MLflow, or "
        "restore the backup that was taken before its migration."
    )


def _is_empty(engine: Engine) -> bool:
    """Return whether the interrupted migration was the first one, with nothing stored since."""
    inspector = inspect(engine)
    if inspector.get_table_comment(_MARKER)["text"] != _FROM_EMPTY:
        return False
    # Somebody may have completed the migration since, with MLflow's own command.
    kept = {"runs", "registered_models"} & set(inspector.get_table_names())
    return not any(execute(engine, f"SELECT EXISTS (SELECT 1 FROM {name})") for name in kept)  # noqa: S608


def _compare(history: ScriptDirectory, revision: str | None) -> SchemaState:
    if revision == history.get_current_head():
        return SchemaState.CURRENT
    try:
        history.get_revision(revision or "base")
    except CommandError:
        return SchemaState.NEWER
    return SchemaState.OLDER
