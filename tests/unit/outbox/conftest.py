"""Fixtures for the tests of journals."""

from __future__ import annotations

import pytest


@pytest.fixture
def short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """An intake starts a new file after 4 MB."""
    monkeypatch.setattr("mlflow_iap_callbacks.outbox.intake._LONG_FILE_BYTES", 4_000_000)
