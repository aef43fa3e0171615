"""Connections after the database's password was changed."""

from __future__ import annotations

from typing import Any

import pymysql
import pytest

from mlflow_iap_callbacks.server.changed_password import reconnecting
from mlflow_iap_callbacks.server.start_error import StartError

_MYSQL = pymysql.err.OperationalError(1045, "Access denied for user 'mlflow'@'localhost'")
_POSTGRESQL = RuntimeError('FATAL:  password authentication failed for user "mlflow"')


class Database:
    """Accepts one password."""

    def __init__(self, password: str, error: Exception = _MYSQL) -> None:
        self.password = password
        self.error = error
        self.tried: list[str] = []

    def connect(self, *_: Any, password: str) -> str:
        self.tried.append(password)
        if password != self.password:
            raise self.error
        return "connection"


@pytest.mark.parametrize("error", [_MYSQL, _POSTGRESQL])
def test_a_changed_password_is_read_once_and_then_used(error: Exception) -> None:
    database, options = Database("new", error), {"password": "old"}
    secret = iter(["new"])
    connect = reconnecting(lambda: next(secret))
    for _ in range(2):
        assert connect(database, None, [], options) == "connection"  # type: ignore[arg-type]
    assert database.tried == ["old", "new", "new"]


def test_a_password_that_is_not_changed_yet_is_reported_as_rejected() -> None:
    database = Database("new")
    with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
        reconnecting(lambda: "old")(database, None, [], {"password": "old"})  # type: ignore[arg-type]
    assert database.tried == ["old"]


def test_a_password_that_cannot_be_read_is_reported_as_rejected_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def read() -> str:
        raise StartError("The secret cannot be read.")

    options = {"password": "old"}
    with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
        reconnecting(read)(Database("new"), None, [], options)  # type: ignore[arg-type]
    assert options == {"password": "old"}
    assert "rejected the password. The secret cannot be read." in caplog.text


def test_another_error_is_raised_without_reading_the_password() -> None:
    def read() -> str:
        raise AssertionError

    database = Database("new", pymysql.err.OperationalError(2003, "Can't connect"))
    with pytest.raises(pymysql.err.OperationalError, match="Can't connect"):
        reconnecting(read)(database, None, [], {"password": "old"})  # type: ignore[arg-type]
