"""The progress bar of a delivery: on a terminal only, and only where it takes a while."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fake_mlflow import FakeMlflow
from mlflow_iap_callbacks.delivery.progress import flush_with_bar
from virtual_process import VirtualProcess


def _shown(process: VirtualProcess, *, is_terminal: bool = True) -> str:
    text = io.StringIO()
    for _ in flush_with_bar(process.sender, Console(file=text, force_terminal=is_terminal)):
        assert process.clock.monotonic() < 2000.0
    return text.getvalue()


def _slow(server: FakeMlflow, process: VirtualProcess, seconds: float) -> None:
    """Make the server come back after some time, and ten runs wait for it."""
    ends = process.clock.monotonic() + seconds
    for _ in range(10):
        process.begin().finish()

    def serve(method: str) -> None:
        server.is_away = process.clock.monotonic() < ends

    server.on_request = serve


def test_a_quick_delivery_shows_nothing(server: FakeMlflow, process: VirtualProcess) -> None:
    _slow(server, process, 0.8)
    assert _shown(process) == ""
    assert len(server.runs) == 10


def test_a_delivery_that_takes_longer_shows_how_far_it_is(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    _slow(server, process, 10.0)
    assert "sending to https://mlflow.example" in _shown(process)
    assert len(server.runs) == 10


def test_nothing_is_drawn_where_no_terminal_is(server: FakeMlflow, process: VirtualProcess) -> None:
    _slow(server, process, 10.0)
    assert _shown(process, is_terminal=False) == ""


def test_what_is_logged_meanwhile_is_not_waited_for(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin()
    run.finish()
    server.on_request = lambda method: process.begin().finish()
    assert _shown(process) == ""
    assert process.sender.waiting > 0


@pytest.mark.parametrize("steps", [1, 3])
def test_whoever_looks_on_may_leave(
    steps: int, server: FakeMlflow, process: VirtualProcess
) -> None:
    server.is_away = True
    process.begin().finish()
    looks = flush_with_bar(process.sender, Console(file=io.StringIO()))
    for _ in range(steps):
        next(looks)
    looks.close()  # type: ignore[attr-defined]
    assert process.sender.waiting == 2
