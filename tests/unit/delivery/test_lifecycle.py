"""The senders of a process, one per server, from the first use to the exit or a fork."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

import pytest

from fake_mlflow import FakeClient, FakeMlflow
from mlflow_iap_callbacks.delivery import lifecycle, sigterm
from mlflow_iap_callbacks.delivery.closing import Deadline
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from mlflow_iap_callbacks.delivery.server_uri import server_uri
from mlflow_iap_callbacks.outbox import journal_folder
from own_log import said_by_us


@pytest.fixture
def log_last(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were left at each call of the function that logs at the end."""
    seconds: list[float] = []
    work = [lambda deadline: seconds.append(round(deadline.left))]
    monkeypatch.setattr(lifecycle, "end_at_exit", work)
    return seconds


def test_clients_of_the_same_server_share_a_sender_which_uses_the_last_client(
    server: FakeMlflow,
) -> None:
    first, last = FakeClient(server), FakeClient(server)
    sender = lifecycle.sender_for(first)
    assert lifecycle.sender_for(last) is sender
    assert sender._calls.client is last
    other = FakeMlflow("https://other.example")
    assert lifecycle.sender_for(FakeClient(other)) is not sender


@pytest.mark.parametrize(
    ("uri", "stored"),
    [
        ("https://ada:S3cret@mlflow.example/", "https://mlflow.example"),
        ("https://S3cret@mlflow.example", "https://mlflow.example"),
        (
            "mysql+pymysql://ada:S3%40cret@h:3306/db?charset=utf8",
            "mysql+pymysql://ada@h:3306/db?charset=utf8",
        ),
        ("postgresql://ada@h/db", "postgresql://ada@h/db"),
        (
            "postgresql://h/db?password=S3cret&host=/cloudsql/a",
            "postgresql://h/db?host=/cloudsql/a",
        ),
        ("postgresql://h/db?sslpassword=S3cret", "postgresql://h/db"),
        ("file:///tmp/runs", "file:///tmp/runs"),
    ],
)
def test_a_journal_stores_its_server_without_a_password(uri: str, stored: str) -> None:
    assert server_uri(uri) == stored


def test_a_sender_does_not_depend_on_the_password_in_its_uri() -> None:
    with_password = FakeMlflow("https://user:secret@mlflow.example/")
    sender = lifecycle.sender_for(FakeClient(with_password))
    assert sender.server == "https://mlflow.example"
    assert lifecycle.sender_for(FakeClient(FakeMlflow("https://mlflow.example"))) is sender


def test_an_exit_delivers_everything_and_leaves_no_file(
    server: FakeMlflow, log_last: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    run = RunWriter(FakeClient(server), "experiment")
    run.log_metrics({"m": 0.5})
    lifecycle.exit_process(20.0)
    assert log_last == [20.0]
    assert (server.run(run.key).status, server.run(run.key).curve("m")) == ("FAILED", [(0, 0.5)])
    assert list(journal_folder.folder().iterdir()) == []
    assert said_by_us(caplog) == []


def test_what_is_first_logged_while_no_thread_can_be_started_is_delivered_by_the_exit(
    server: FakeMlflow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    # As functions that are called at exit see it in Python 3.12.
    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(sigterm, "_pipe", None)
    run = RunWriter(FakeClient(server), "experiment")
    run.log_metrics({"m": 0.5})
    run.finish()
    lifecycle.exit_process(20.0)
    assert (server.run(run.key).status, server.run(run.key).curve("m")) == (
        "FINISHED",
        [(0, 0.5)],
    )
    assert said_by_us(caplog) == []


def test_what_is_logged_after_the_exit_gets_a_new_sender(server: FakeMlflow) -> None:
    client = FakeClient(server)
    run = RunWriter(client, "experiment")
    first = lifecycle.sender_for(client)
    lifecycle.exit_process(20.0)
    run.log_metrics({"m": 0.5})
    assert lifecycle.sender_for(client) is not first
    lifecycle.exit_process(20.0)
    assert server.run(run.key).curve("m") == [(0, 0.5)]


def test_a_warning_says_once_that_what_is_logged_after_the_last_delivery_stays_on_disk(
    server: FakeMlflow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifecycle, "_has_exited", False)
    run = RunWriter(FakeClient(server), "experiment")
    lifecycle.exit_interpreter()
    assert said_by_us(caplog) == []
    for step in range(2):  # as in an atexit function that was registered earlier
        run.log_metrics({"m": 0.5}, step)
    (said,) = said_by_us(caplog)
    assert "stays on disk. `mlflow-iap sync` sends it" in said


def test_an_exit_without_time_leaves_everything_on_disk_and_says_so(
    server: FakeMlflow, caplog: pytest.LogCaptureFixture
) -> None:
    server.is_away = True
    RunWriter(FakeClient(server), "experiment")
    lifecycle.exit_process(0.0)
    (report,) = journal_folder.survey()
    assert (report.is_live, report.records()) == (False, 2)
    assert any("2 records" in text for text in said_by_us(caplog))


def test_ctrl_c_during_the_last_logging_ends_the_exit_and_keeps_everything(
    server: FakeMlflow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(deadline: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lifecycle, "end_at_exit", [interrupt])
    server.is_away = True
    RunWriter(FakeClient(server), "experiment")
    lifecycle.exit_process(20.0)
    assert any("left on disk" in text for text in said_by_us(caplog))
    (report,) = journal_folder.survey()
    assert (report.is_live, report.records()) == (False, 1)


def test_sigterm_during_the_exit_shortens_it(
    server: FakeMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[float] = []

    def receive_sigterm(deadline: Deadline) -> None:
        thread = threading.Thread(target=lifecycle.exit_process, args=(0.1,))
        thread.start()
        thread.join()
        left.append(deadline.left)

    monkeypatch.setattr(lifecycle, "end_at_exit", [receive_sigterm])
    RunWriter(FakeClient(server), "experiment")
    lifecycle.exit_process(20.0)
    assert left == [0.0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork with other threads
def test_a_forked_child_has_its_own_senders_and_its_parent_continues(server: FakeMlflow) -> None:
    run = RunWriter(FakeClient(server), "experiment")
    parent = lifecycle.sender_for(run.client)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            assert lifecycle.sender_for(run.client) is not parent
            # Nothing may wait for a lock that a thread of the parent was holding.
            assert lifecycle.LOCK.acquire(timeout=5.0)
            lifecycle.exit_process(0.0)
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert lifecycle.sender_for(run.client) is parent
    run.finish()
    assert run.flush(20.0)
    assert server.run(run.key).status == "FINISHED"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork with other threads
def test_no_fork_happens_while_a_thread_begins_a_run(server: FakeMlflow) -> None:
    may_fork, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with lifecycle.LOCK:
            may_fork.set()
            forked.wait(0.1)

    thread = threading.Thread(target=hold)
    thread.start()
    assert may_fork.wait(10.0)
    child = os.fork()
    if child == 0:
        os._exit(0 if lifecycle.LOCK.acquire(timeout=5.0) else 1)
    forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
