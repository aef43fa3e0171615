"""Which journals of dead processes a sender takes over, and when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_mlflow import FakeMlflow
from mlflow_iap_callbacks.outbox import adoption, journal_folder
from mlflow_iap_callbacks.outbox.journal_content import Content, read_whole
from own_log import said_by_us
from virtual_process import VirtualClock, VirtualProcess
from waiting import wait_until

NewProcess = Callable[[], VirtualProcess]


def _leave_a_journal(new_process: NewProcess) -> Path:
    process = new_process()
    process.begin().log_metrics({"loss": 0.5})
    path = process.sender.outbox.path
    assert path is not None
    process.die()
    return path


def test_a_journal_that_cannot_be_sent_is_reported_once_and_does_not_delay_others(
    new_process: NewProcess,
    server: FakeMlflow,
    clock: VirtualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, _ = _leave_a_journal(new_process), _leave_a_journal(new_process)
    bad.chmod(0o666)
    process = new_process()
    process.begin().finish()
    process.deliver_for(200.0)
    assert len(server.runs) == 2
    assert [text for text in said_by_us(caplog) if "cannot be sent" in text] == [
        f"The journal {bad} cannot be sent: {bad} can be written to by other users; "
        f"`chmod go-w {bad}` changes that."
    ]


def test_a_slow_adoption_delays_this_process_for_only_a_few_seconds(
    new_process: NewProcess,
    server: FakeMlflow,
    clock: VirtualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _leave_a_journal(new_process)
    is_begun, may_end = threading.Event(), threading.Event()

    def read_slowly(journal: Path) -> Content:
        is_begun.set()
        assert may_end.wait(30)
        return read_whole(journal)

    monkeypatch.setattr(adoption, "read_whole", read_slowly)
    process = new_process()
    adopting = threading.Thread(target=process.sender.adopt)
    adopting.start()
    assert is_begun.wait(30)
    process.begin().finish()  # makes its own journal meanwhile
    process.deliver()
    assert server.runs == {}
    process.deliver_for(6.0)
    assert [run.status for run in server.runs.values()] == ["FINISHED"]
    may_end.set()
    adopting.join()
    process.deliver_for(5.0)
    assert len(server.runs) == 2
    wait_until(lambda: len(journal_folder.survey()) == 1, "the adopted journal is deleted")


def test_no_further_journal_is_taken_over_once_the_time_is_up(new_process: NewProcess) -> None:
    _leave_a_journal(new_process)
    process = new_process()
    process.sender.adopt(0.0)
    assert process.sender.waiting == 0
    process.sender.adopt(5.0)
    assert process.sender.waiting > 0
