"""Reads what this package logs in a test."""

from __future__ import annotations

import pytest

_PREFIX = "mlflow-iap: "


def said_by_us(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The records of this package only; requests of an earlier test may still be retried."""
    records = [each for each in caplog.records if each.name == "mlflow_iap_callbacks"]
    assert all(each.getMessage().startswith(_PREFIX) for each in records)
    return [each.getMessage().removeprefix(_PREFIX) for each in records]
