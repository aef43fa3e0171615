"""Shared by all tests of the LightGBM callback."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from inline_delivery import InlineDelivery


@pytest.fixture(autouse=True)
def _quick_garbage_collection() -> Iterator[None]:
    """Exclude what exists before the test, such as MLflow's modules, from garbage collection."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def delivery() -> InlineDelivery:
    return InlineDelivery()
