"""What this package logs in a test."""

from __future__ import annotations

import pytest


def said_by_us(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this package has logged; requests of an earlier test may still be tried again."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("mlflow_iap_callbacks")]
