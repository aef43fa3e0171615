"""A server in memory, a clock that the test moves, and processes that deliver when asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from fake_mlflow import FakeMlflow
from virtual_process import VirtualClock, VirtualProcess


@pytest.fixture
def server() -> FakeMlflow:
    return FakeMlflow()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def new_process(server: FakeMlflow, clock: VirtualClock) -> Iterator[Callable[[], VirtualProcess]]:
    """Start processes, which are closed at the end of the test."""
    with ExitStack() as stack:

        def start() -> VirtualProcess:
            process = VirtualProcess(server, clock)
            stack.callback(process.close)
            return process

        yield start


@pytest.fixture
def process(new_process: Callable[[], VirtualProcess]) -> VirtualProcess:
    return new_process()
