"""Shared by all tests of the Optuna callback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inline_delivery import InlineDelivery
from optuna_helpers import fluent_state_of_its_own, quiet_optuna


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Iterator[None]:
    with quiet_optuna():
        yield


@pytest.fixture
def fluent_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reset MLflow's fluent API before and after the test."""
    with fluent_state_of_its_own(monkeypatch):
        yield


@pytest.fixture
def delivery() -> InlineDelivery:
    return InlineDelivery()


@pytest.fixture
def delivery_of_files() -> InlineDelivery:
    """Another server, for tests of artifacts."""
    return InlineDelivery(has_files=True)
