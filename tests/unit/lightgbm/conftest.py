"""Shared by all tests of the LightGBM callback."""

from __future__ import annotations

import pytest

from inline_delivery import InlineDelivery


@pytest.fixture
def delivery() -> InlineDelivery:
    return InlineDelivery()
