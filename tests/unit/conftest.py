"""Retries of requests, after a twentieth of the usual pause."""

from __future__ import annotations

import time

import pytest

from mlflow_iap_callbacks.iap.retry_policy import RetryPolicy


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        time.sleep(seconds / 20)

    monkeypatch.setattr(RetryPolicy, "sleep", staticmethod(sleep))
