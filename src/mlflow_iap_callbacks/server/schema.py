"""MLflow's tables: whether they fit this MLflow, and their migration by one at a time."""

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

from . import users_schema
from .database import name_of
from .start_error import StartError, first_line

# There while a migration is under way: MySQL commits each change of a table at once, so one that
# was cut off leaves half of a step. Its comment says from which revision.
_MARKER = "mlflow_iap_migration"
_FROM_EMPTY = "empty"
# Seconds for another's migration: a table of 100 million metrics is rewritten in some minutes.
_LOCK_SECONDS = 600
_RESTORE = (
    "Restore the backup that was taken before it (appengine/README.md, Backup and restore), then "
    "migrate again."
)


class Schema(Enum):
    """How the tables in a database stand to this MLflow."""

    EMPTY = auto()  # none
    FOREIGN = auto()  # some, and no revision of MLflow's
    OLDER = auto()
    CURRENT = auto()
    NEWER = auto()  # a revision that this MLflow does not know
    CUT_OFF = auto()  # in the middle of a migration: under way, or it was killed or failed


def look(engine: Engine, *, has_users: bool) -> Schema:
    """Find out how the tables stand; `has_users`: those of users and permissions too."""
    tables = inspect(engine).get_table_names()
    if _MARKER in tables:
        return Schema.CUT_OFF
    if all(name.startswith("alembic_") for name in tables):
        return Schema.EMPTY
    revision = mlflow_db._get_schema_version(engine)
    if revision is None:
        return Schema.FOREIGN
    found = _compare(ScriptDirectory.from_config(mlflow_db._get_alembic_config("")), revision)
    if found is Schema.CURRENT and has_users:
        return _compare(users_schema.scripts(), users_schema.revision_of(engine))
    return found


def require_current(engine: Engine, *, has_users: bool) -> None:
    """Return where this MLflow can serve from the database.

    Raises:
        StartError: it cannot; with what to do.
    """
    found = look(engine, has_users=has_users)
    if found is not Schema.CURRENT:
        raise StartError(f"The database {name_of(engine.url)} {_refusal(engine, found)}")


def migrate(engine: Engine, *, has_users: bool) -> bool:
    """Bring the tables to this MLflow's schema; return whether there was anything to do.

    A lock in the database server lets one do it at a time; the others wait, and find it done.

    Args:
        engine: of one connection, which holds the lock and makes the changes: when it is lost the
            lock goes only after the last change.
        has_users: whether those of users and permissions are wanted too.

    Raises:
        StartError: it cannot begin, or it failed.
    """
    lock = f"mlflow-iap {engine.url.database}"[:64]  # MySQL's longest
    if _one(engine, "SELECT GET_LOCK(:lock, :seconds)", lock=lock, seconds=_LOCK_SECONDS) != 1:
        raise StartError(
            f"Another has been migrating the database {name_of(engine.url)} for {_LOCK_SECONDS} "
            "s. Wait for it to end (SHOW PROCESSLIST shows what it does)."
        )
    try:
        return _migrate(engine, has_users)
    finally:
        _one(engine, "SELECT RELEASE_LOCK(:lock)", lock=lock)


def _migrate(engine: Engine, has_users: bool) -> bool:
    found = look(engine, has_users=has_users)
    if found is Schema.CUT_OFF and _has_nothing_to_lose(engine):
        _drop_all(engine)
        found = Schema.EMPTY
    if found is Schema.CURRENT:
        return False
    if found not in (Schema.EMPTY, Schema.OLDER):
        raise StartError(f"The database {name_of(engine.url)} {_refusal(engine, found)}")
    _require_triggers(engine)
    if found is Schema.EMPTY:
        _require_that_names_stay_apart(engine)
    begins = mlflow_db._get_schema_version(engine) or _FROM_EMPTY
    _run(engine, f"CREATE TABLE {_MARKER} (id INT) COMMENT = '{begins}'")
    try:
        if found is Schema.EMPTY:
            mlflow_db._initialize_tables(engine)
        else:
            mlflow_db._upgrade_db(engine)
        if has_users:
            users_schema.upgrade(engine)
    except (SQLAlchemyError, MlflowException, CommandError) as error:
        reason = first_line(getattr(error, "orig", None) or error)
        again = "Migrate again: it begins anew, for nothing was in it."
        raise StartError(
            f"The migration of {name_of(engine.url)} from {begins} failed: {reason}. "
            f"{again if found is Schema.EMPTY else _RESTORE}"
        ) from None
    _run(engine, f"DROP TABLE {_MARKER}")
    return True


def _refusal(engine: Engine, found: Schema) -> str:
    by_hand = "`python -m mlflow_iap_callbacks.server migrate`"
    if found is Schema.EMPTY:
        return f"has no tables yet. Run {by_hand}."
    if found is Schema.FOREIGN:
        return (
            "has tables but no schema version of MLflow's. Give an empty database, or the one "
            "that MLflow has been using."
        )
    if found is Schema.CUT_OFF:
        if _has_nothing_to_lose(engine):
            return f"is in the middle of its first migration. Wait for it, or run {by_hand}."
        return f"is in the middle of a migration. Wait for it if it is under way. Else: {_RESTORE}"
    revision = mlflow_db._get_schema_version(engine)
    if revision == mlflow_db._get_latest_schema_revision():
        revision = f"{users_schema.revision_of(engine) or 'none'} of users"
    if found is Schema.OLDER:
        return f"has the older schema {revision}. Back it up, then run {by_hand}."
    return (
        f"has the schema {revision}, which is newer than this MLflow. Deploy the newer MLflow, or "
        "restore the backup that was taken before its migration."
    )


def _has_nothing_to_lose(engine: Engine) -> bool:
    """Of a migration that was cut off: whether it was the first, and nobody logged anything yet."""
    inspector = inspect(engine)
    if inspector.get_table_comment(_MARKER)["text"] != _FROM_EMPTY:
        return False
    # Another may have brought the tables up by MLflow's own means since.
    kept = {"runs", "registered_models"} & set(inspector.get_table_names())
    return not any(_one(engine, f"SELECT EXISTS (SELECT 1 FROM {name})") for name in kept)  # noqa: S608


def _drop_all(engine: Engine) -> None:
    _run(engine, "SET FOREIGN_KEY_CHECKS = 0")
    names = [name for name in inspect(engine).get_table_names() if name != _MARKER]
    for name in (*names, _MARKER):  # what says that nothing is in it goes last
        _run(engine, f"DROP TABLE `{name}`")
    _run(engine, "SET FOREIGN_KEY_CHECKS = 1")


def _require_triggers(engine: Engine) -> None:
    """MLflow's migrations create triggers: error 1419 in their middle, had it not been allowed."""
    with engine.connect() as connection:
        is_logged, is_trusted = connection.execute(
            text("SELECT @@GLOBAL.log_bin, @@GLOBAL.log_bin_trust_function_creators")
        ).one()
        grants = [str(grant) for grant in connection.execute(text("SHOW GRANTS")).scalars()]
    everywhere = re.compile(r"GRANT (ALL PRIVILEGES|.*\bSUPER\b).* ON \*\.\*")
    if is_logged and not is_trusted and not any(map(everywhere.match, grants)):
        raise StartError(
            f"The database {name_of(engine.url)} has binary logging on and lets this user create "
            "no triggers (error 1419). Set its flag log_bin_trust_function_creators=on: `gcloud "
            "sql instances patch INSTANCE --database-flags=log_bin_trust_function_creators=on`."
        )


def _require_that_names_stay_apart(engine: Engine) -> None:
    create = "`gcloud sql databases create --charset=utf8mb4 --collation=utf8mb4_0900_bin`"
    characters = _one(engine, "SELECT @@character_set_database")
    if characters != "utf8mb4":
        raise StartError(
            f"The database {name_of(engine.url)} stores text as {characters}, which cannot hold "
            f"all that is logged. Create it with {create}."
        )
    collation = _one(engine, "SELECT @@collation_database")
    if str(collation).endswith("_ci"):
        raise StartError(
            f"The database {name_of(engine.url)} compares text by {collation}, to which C and c "
            "are one: a run that has params or metrics of both names would lose some. Create it "
            f"with {create}."
        )


def _compare(history: ScriptDirectory, revision: str | None) -> Schema:
    if revision == history.get_current_head():
        return Schema.CURRENT
    try:
        return Schema.OLDER if revision is None or history.get_revision(revision) else Schema.NEWER
    except CommandError:
        return Schema.NEWER


def _one(engine: Engine, statement: str, **values: Any) -> Any:
    with engine.begin() as connection:
        return connection.execute(text(statement), values).scalar()


def _run(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))
