"""Shared by the tests of the commands."""

from __future__ import annotations

import pytest

from mlflow_iap_callbacks.cli.console import console


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the console wide enough for the path of any test's folder."""
    monkeypatch.setattr(console, "width", 300)
