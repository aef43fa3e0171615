"""The progress bar of a delivery, shown only on a terminal and only if delivery takes a while."""

from __future__ import annotations

import io

from rich.console import Console

from fake_mlflow import FakeMlflow
from mlflow_iap_callbacks.delivery.progress import DeliveryBar
from virtual_process import VirtualProcess


def _shown(process: VirtualProcess, *, is_terminal: bool = True, is_jupyter: bool = False) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, force_jupyter=is_jupyter)
    with DeliveryBar([process.sender], console) as bar:
        while not process.sender.flush(0.2):
            assert process.clock.monotonic() < 2000.0
            bar.update()
    return text.getvalue()


def _slow(server: FakeMlflow, process: VirtualProcess, seconds: float) -> None:
    """Let ten runs wait for the server, which comes back after some time."""
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


def test_a_slow_delivery_shows_its_progress(server: FakeMlflow, process: VirtualProcess) -> None:
    _slow(server, process, 10.0)
    shown = _shown(process)
    assert "sending to https://mlflow.example" in shown
    assert "0/20 [" in shown
    assert len(server.runs) == 10


def test_nothing_is_shown_without_a_terminal(server: FakeMlflow, process: VirtualProcess) -> None:
    _slow(server, process, 10.0)
    assert _shown(process, is_terminal=False) == ""
