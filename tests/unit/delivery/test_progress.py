"""What is shown of a delivery: a bar or a line, if it takes a while, and links to runs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from rich.console import Console
from traitlets.config import Config

from fake_mlflow import FakeMlflow
from mlflow_iap_callbacks.delivery.progress import DeliveryBar, progress_line, show_link
from virtual_process import VirtualProcess


class ZMQInteractiveShell(InteractiveShell):
    """By this name, libraries know that they are in a notebook."""


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """Run the test in a notebook, whose outputs it gets."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = ZMQInteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    shell.display_pub = CapturingDisplayPublisher(parent=shell)
    with shell.builtin_trap:
        yield shell.display_pub.outputs
    ZMQInteractiveShell.clear_instance()


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


def test_in_a_notebook_a_slow_delivery_is_one_line_that_says_at_the_end_what_was_sent(
    server: FakeMlflow, process: VirtualProcess, notebook: list[Any]
) -> None:
    _slow(server, process, 10.0)
    assert _shown(process, is_terminal=False, is_jupyter=True) == ""
    assert len({output["transient"]["display_id"] for output in notebook}) == 1
    assert [output.get("update", False) for output in notebook][:2] == [False, True]
    texts = [output["data"]["text/plain"] for output in notebook]
    assert texts[0] == "Sending to https://mlflow.example: 0 of 20 records."
    assert texts[-1] == "Sent 20 records to https://mlflow.example."


def test_in_a_notebook_a_delivery_that_gives_up_says_how_much_is_sent_later(
    server: FakeMlflow, process: VirtualProcess, notebook: list[Any]
) -> None:
    _slow(server, process, 1000.0)
    with DeliveryBar([process.sender], Console(force_jupyter=True)) as bar:
        process.sender.flush(5.0)
        bar.update()
    text = notebook[-1]["data"]["text/plain"]
    assert text == "Sent 0 records to https://mlflow.example; 20 left to send later."


def test_in_a_notebook_the_steps_are_one_line_without_widgets(notebook: list[Any]) -> None:
    with progress_line() as show:
        show("drawing")
        show("drawn <all>")
    first, last = notebook
    assert first["transient"] == last["transient"]
    assert last["data"] == {
        "text/plain": "drawn <all>",
        "text/html": "<div>drawn &lt;all&gt;</div>",
    }


def test_in_a_notebook_a_link_can_be_clicked(notebook: list[Any]) -> None:
    show_link("Run <a>", "https://mlflow.example/#/experiments/1/runs/a")
    (output,) = notebook
    assert output["data"]["text/plain"] == "Run <a>: https://mlflow.example/#/experiments/1/runs/a"
    assert (
        "Run &lt;a&gt;: <a href='https://mlflow.example/#/experiments/1/runs/a'"
        in output["data"]["text/html"]
    )


def test_without_a_notebook_a_link_is_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show_link("Run", "https://mlflow.example/a")
    assert capsys.readouterr() == ("", "Run: https://mlflow.example/a\n")
