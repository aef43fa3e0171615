"""Environment variables of a test."""

from __future__ import annotations

from collections.abc import Mapping

import pytest


def set_all(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    """Set environment variables until the test ends."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
