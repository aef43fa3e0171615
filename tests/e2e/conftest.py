"""Fixtures of several end-to-end tests: names and programs of their own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import Start, starting


@pytest.fixture
def name() -> str:
    """The name of an experiment or a study that no other test has."""
    return uuid.uuid4().hex


@pytest.fixture
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Starts programs, which begin with the test file's ``IMPORTS``.

    Those still running at the end of the test are killed.
    """
    with starting(tmp_path, request.module.IMPORTS) as start:
        yield start
