"""Shared by all tests of the LightGBM callback."""

from __future__ import annotations

import gc

import pytest

from inline_delivery import InlineDelivery


@pytest.fixture(autouse=True)
def _quick_garbage_collection() -> None:
    """Exclude what exists before the test, such as MLflow's modules, from garbage collection.

    It stays excluded, because the tests after these collect garbage too.
    """
    gc.freeze()


@pytest.fixture
def delivery() -> InlineDelivery:
    return InlineDelivery()
