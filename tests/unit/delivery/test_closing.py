"""The end of a process: what is delivered in the time that is left, and what is reported."""

from __future__ import annotations

import pytest

from fake_mlflow import FakeMlflow, FakePlainClient
from mlflow_iap_callbacks.delivery import closing, lifecycle
from mlflow_iap_callbacks.tags import ENDED_TAG
from own_log import said_by_us
from virtual_process import VirtualClock, VirtualProcess


def test_open_runs_are_ended_and_delivered(server: FakeMlflow, process: VirtualProcess) -> None:
    as_asked, abandoned = process.begin(), process.begin()
    as_asked.finish_at_exit("FINISHED")
    abandoned.log_metrics({"loss": 1.0})
    closing.deliver_last([process.sender], 30.0)
    assert server.run(as_asked.key).status == "FINISHED"
    run = server.run(abandoned.key)
    assert (run.status, run.curve("loss")) == ("FAILED", [(0, 1.0)])
    assert run.tags[ENDED_TAG] == "The process ended before the run was finished."
    assert process.sender.waiting == 0


def test_what_dead_processes_left_is_delivered_too(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess
) -> None:
    dead = VirtualProcess(server, clock)
    run = dead.begin()
    run.log_metrics({"loss": 1.0})
    dead.die()
    process.begin().finish()
    closing.deliver_last([process.sender], 30.0)
    assert server.run(run.key).curve("loss") == [(0, 1.0)]


def test_a_server_that_is_away_is_given_up_after_five_seconds(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess
) -> None:
    server.is_away = True
    process.begin().finish()
    began = clock.monotonic()
    closing.deliver_last([process.sender], 30.0)
    assert 5.0 <= clock.monotonic() - began < 10.0


def test_a_server_that_comes_back_in_time_is_delivered_to(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess
) -> None:
    run = process.begin()
    server.is_away = True
    back_at = clock.monotonic() + 3.0

    def come_back() -> bool:
        server.is_away = clock.monotonic() < back_at
        return process.sender.deliver_next()

    clock.meanwhile = come_back
    closing.deliver_last([process.sender], 30.0)
    assert server.run(run.key).status == "FAILED"
    assert process.sender.waiting == 0


def test_the_time_limit_is_for_all_servers_together(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess
) -> None:
    others = FakeMlflow("https://other.example")
    other = VirtualProcess(others, clock)
    other.begin().finish()
    process.begin().finish()
    clock.meanwhile = lambda: False  # nothing is ever delivered
    began = clock.monotonic()
    closing.deliver_last([process.sender, other.sender], 30.0)
    assert 30.0 <= clock.monotonic() - began < 32.0
    assert not server.runs
    other.close()


def test_ctrl_c_stops_the_delivery_and_raises_nothing(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess
) -> None:
    process.begin().finish()

    def interrupt() -> bool:
        raise KeyboardInterrupt

    clock.meanwhile = interrupt
    closing.deliver_last([process.sender], 30.0)
    assert process.sender.waiting == 2
    assert not server.runs


def test_records_that_stay_on_disk_are_counted_once(
    process: VirtualProcess, caplog: pytest.LogCaptureFixture
) -> None:
    run = process.begin()
    run.log_metrics({"loss": 1.0})
    closing.report_rest(process.sender)
    (report,) = said_by_us(caplog)
    assert report.startswith("2 records for https://mlflow.example stay on disk. `mlflow-iap sync`")


def test_nothing_is_reported_if_all_is_delivered(
    process: VirtualProcess, caplog: pytest.LogCaptureFixture
) -> None:
    process.begin().finish()
    process.deliver()
    closing.report_rest(process.sender)
    assert said_by_us(caplog) == []


def test_records_in_memory_are_reported_as_lost(
    server: FakeMlflow,
    clock: VirtualClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", "/proc/no-journal-can-be-made-here")
    process = VirtualProcess(server, clock)
    process.begin().finish()
    caplog.clear()
    closing.report_rest(process.sender)
    (report,) = said_by_us(caplog)
    assert report.startswith("2 records for https://mlflow.example are lost")
    process.close()


def test_a_drain_logs_what_is_known_last_and_then_delivers_it(
    server: FakeMlflow, process: VirtualProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = process.begin()
    given = []

    def log_last(seconds: float) -> None:
        given.append(seconds)
        run.log_metrics({"last": 1.0})
        run.finish()

    monkeypatch.setattr(lifecycle, "before_drain", [log_last])
    lifecycle.drain(7.0)
    assert given == [7.0]
    assert server.run(run.key).curve("last") == [(0, 1.0)]
    assert server.run(run.key).status == "FINISHED"


def test_a_drained_process_that_goes_on_gets_another_sender(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin()
    lifecycle.drain(7.0)
    assert not process.sender.outboxes
    sender = lifecycle.sender_for(process.client)
    assert sender is not process.sender
    run.log_metrics({"loss": 1.0})
    assert sender.flush(30.0)
    assert server.run(run.key).curve("loss") == [(0, 1.0)]
    sender.close()


def test_clients_of_one_server_share_a_sender_however_its_uri_is_written() -> None:
    server = FakeMlflow("https://ada:secret@mlflow.example/")
    same = FakeMlflow("https://mlflow.example")
    senders = {lifecycle.sender_for(FakePlainClient(each)) for each in (server, same)}
    (sender,) = senders
    assert sender.server == "https://mlflow.example"
