"""Batches of metrics, params and tags, logged to two stores whose tables are then compared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy
from hypothesis import strategies as st
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as mlflow_db
from mlflow.store.db.base_sql_model import Base
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.schema import CreateTable

_TABLES = [kind.__table__ for kind in (SqlMetric, SqlLatestMetric, SqlParam, SqlTag)]
# The ones that a database stores in another form are frequent, and so are repetitions.
_VALUES = [0.0, -0.0, 1.0, -1.5, 5e-324, 1e308, math.nan, math.inf, -math.inf]
_KEYS = st.sampled_from(["auc", "AUC", "loss", "loss ", "über", "a/b c"])

_metrics = st.builds(
    Metric,
    key=_KEYS,
    value=st.sampled_from(_VALUES) | st.floats(),
    timestamp=st.sampled_from([0, 1, 2, 1_700_000_000_000]),
    step=st.sampled_from([0, 1, 2, -1, 2**62]),
)
# What MLflow rejects: before it stores anything, between params and metrics, or in the database.
_other: Any = "text"
_none: Any = None
_wrong_metrics = st.sampled_from(
    [
        Metric("", 1.0, 1, 1),
        Metric("x" * 251, 1.0, 1, 1),
        Metric("..", 1.0, 1, 1),
        Metric("auc", _none, 1, 1),
        Metric("auc", _other, 1, 1),
        Metric("auc", True, 1, 1),
        Metric("auc", 1.0, -1, 1),
        Metric("auc", 1.0, _none, 1),
        Metric("auc", 1.0, 1, _none),
        Metric("auc", 1.0, 2**63, 1),
        Metric("auc", 1.0, 1, 2**70),
        Metric("auc", 1.0, 1, 1, model_id="m-unknown"),
    ]
)


class Batch(NamedTuple):
    """One call of `log_batch`, for one of a few runs."""

    run: int
    metrics: list[Metric]
    params: list[Param]
    tags: list[RunTag]


def _lists(items: st.SearchStrategy[Any], wrong: st.SearchStrategy[Any]) -> Any:
    mostly_right = st.lists(items, max_size=8)
    return mostly_right | st.builds(lambda some, one: [*some, one], mostly_right, wrong)


def batches() -> st.SearchStrategy[list[Batch]]:
    """Return sequences of calls that repeat, change, and violate what was logged before."""
    params = st.builds(Param, key=st.sampled_from(["a", "A", "b"]), value=st.sampled_from("12"))
    names = st.sampled_from(["mlflow.runName", "a", "b"])
    tags = st.builds(RunTag, key=names, value=st.sampled_from(["one", "two"]))
    one = st.builds(
        Batch,
        run=st.integers(0, 3),
        metrics=_lists(_metrics, _wrong_metrics),
        params=_lists(params, st.just(Param("", "1"))),
        tags=_lists(tags, st.just(RunTag("", "1"))),
    )
    return st.lists(one, min_size=1, max_size=6)


def runs_of(store: SqlAlchemyStore, calls: list[Batch]) -> list[str]:
    """Return the ids of two runs, a deleted one, and none. Only those that are used are created."""
    ids = [f"{number:032x}" for number in range(4)]
    for number in {batch.run for batch in calls} - {3}:
        ids[number] = store.create_run("0", "ada", 1, [], f"run {number}").info.run_id
        if number == 2:
            store.delete_run(ids[number])
    return ids


def outcome_of(store: SqlAlchemyStore, runs: list[str], batch: Batch) -> tuple[str, str] | None:
    """Log a batch; return the kind of its error, and its text if that is MLflow's own."""
    try:
        store.log_batch(runs[batch.run], batch.metrics, batch.params, batch.tags)
    except MlflowException as error:
        text = error.message.replace(runs[batch.run], "RUN")
        # A database's own errors contain the statement.
        return error.error_code, "" if "[SQL: " in text or "Error" in text[:60] else text
    return None


def tables_of(store: SqlAlchemyStore, runs: list[str]) -> list[list[tuple[Any, ...]]]:
    """Return the rows of these runs in all tables, with the runs' places in place of their ids."""
    found = []
    with store.engine.connect() as connection:
        for table in _TABLES:
            query = sqlalchemy.select(table).where(table.c.run_uuid.in_(runs))
            rows = connection.execute(query).mappings()
            found.append(
                sorted(
                    tuple(
                        (name, runs.index(value) if name == "run_uuid" else repr(value))
                        for name, value in sorted(row.items())
                    )
                    for row in rows
                )
            )
    return found


def new_tables(path: Path) -> str:
    """Create MLflow's tables in a file of SQLite, without its migrations; return its URL."""
    url = f"sqlite:///{path}"
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            connection.execute(CreateTable(table))
        connection.execute(sqlalchemy.text("CREATE TABLE alembic_version (version_num TEXT)"))
        head = mlflow_db._get_latest_schema_revision()
        connection.execute(sqlalchemy.text(f"INSERT INTO alembic_version VALUES ('{head}')"))
    engine.dispose()
    return url


def require_equal(mlflow: SqlAlchemyStore, own: SqlAlchemyStore, calls: list[Batch]) -> None:
    """Log batches to both stores, and require the same errors and the same tables."""
    there, here = runs_of(mlflow, calls), runs_of(own, calls)
    for batch in calls:
        expected = outcome_of(mlflow, there, batch)
        assert outcome_of(own, here, batch) == expected, batch
    assert tables_of(own, here) == tables_of(mlflow, there)
