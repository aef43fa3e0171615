"""A console that breaks no line."""

from __future__ import annotations

import pytest

from mlflow_iap_callbacks.cli.console import console


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 300)
