"""Retries of requests, after a twentieth of the usual pause."""

from __future__ import annotations

import time

import pytest


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    # It imports MLflow, and pytest's own process, which reads this file too, runs no test.
    from mlflow_iap_callbacks.iap.retry_policy import RetryPolicy

    def sleep(seconds: float) -> None:
        time.sleep(seconds / 20)

    monkeypatch.setattr(RetryPolicy, "sleep", staticmethod(sleep))
