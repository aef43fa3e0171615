"""What all tests of the LightGBM callback share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from inline_delivery import InlineDelivery


@pytest.fixture(autouse=True)
def _quick_garbage_collection() -> Iterator[None]:
    """What is there before the test, MLflow's modules say, is not looked through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def delivery() -> InlineDelivery:
    return InlineDelivery()
