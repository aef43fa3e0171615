"""What the tests of the commands share."""

from __future__ import annotations

import pytest

from mlflow_iap_callbacks.cli.console import console


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide enough for the path of any test's folder."""
    monkeypatch.setattr(console, "width", 300)
