"""The server on MySQL itself, which Cloud SQL runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from mlflow.entities import Metric, Param
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from batch_checks import check_any_batches, check_several_writers
from deployed_server import behind_iap, run, settings
from mlflow_iap_callbacks import IAPMlflowClient
from mysql_server import MySQL, mysql, needs_mysql
from schema_checks import check_binary_logging_without_its_flag, check_three_migrations_at_once
from server_database import OLDEST_REVISION, text_of, variables
from variables import set_all

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

from mlflow_iap_callbacks.server.trace_store import _new_store

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900), needs_mysql]
__all__ = ["mysql"]

_ROCKET = "🚀 größer"
_LONGEST_PARAM = "ü" * 6000
_LARGEST = 1.7976931348623157e308  # the value that MLflow stores for infinity


def test_it_has_the_settings_of_cloud_sql(mysql: MySQL) -> None:
    ((version, is_logged),) = mysql.query("SELECT @@version, @@log_bin")
    assert int(version.partition(".")[0]) >= 8
    assert is_logged
    plugins = mysql.query("SELECT plugin FROM mysql.user WHERE user = 'mlflow'")
    assert plugins == [("caching_sha2_password",)]


@pytest.mark.parametrize("revision", [None, OLDEST_REVISION])
def test_of_three_concurrent_migrations_one_does_the_work(
    mysql: MySQL, revision: str | None
) -> None:
    check_three_migrations_at_once(mysql, revision)


def test_binary_logging_without_its_flag_is_reported_before_anything_is_changed(
    mysql: MySQL,
) -> None:
    check_binary_logging_without_its_flag(mysql)


def test_text_that_is_hard_to_store_is_read_back_unchanged(
    mysql: MySQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(mysql, mysql.new_database_for("mlflow"), str(tmp_path / "artifacts"))
    assert run("migrate", given).exit_code == 0
    with behind_iap(tmp_path, given) as (cloud, _):
        set_all(monkeypatch, cloud.environment())
        client = IAPMlflowClient()
        run_id = client.create_run("0", run_name=_ROCKET).info.run_id
        numbers = {"not": math.nan, "more": math.inf, "less": -math.inf, "tiny": 5e-324}
        metrics = [Metric(name, value, 1, 0) for name, value in numbers.items()]
        params = [Param("rocket", _ROCKET), Param("long", _LONGEST_PARAM)]
        client.log_batch(run_id, metrics, params)
        found = client.get_run(run_id)
        assert found.info.run_name == _ROCKET
        assert found.data.params == {"rocket": _ROCKET, "long": _LONGEST_PARAM}
        kept = {name: client.get_metric_history(run_id, name)[0].value for name in numbers}
        assert math.isnan(kept.pop("not"))
        assert kept == {"more": _LARGEST, "less": -_LARGEST, "tiny": 5e-324}
        assert found.data.metrics.keys() == numbers.keys()


def test_batches_leave_the_tables_of_mlflows_store(mysql: MySQL) -> None:
    name = mysql.new_database_for("mlflow")
    assert run("migrate", variables(mysql, name)).exit_code == 0
    url = text_of(mysql, name)
    own = _new_store(url, "artifacts")
    check_any_batches(SqlAlchemyStore(url, "artifacts"), own, 200)
    check_several_writers(own)
    own.engine.dispose()
