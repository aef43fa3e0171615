"""The end of a process: what is delivered in the time that is left, and what is reported."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fake_mlflow import FakeMlflow, FakePlainClient
from mlflow_iap_callbacks.delivery import closing, lifecycle
from mlflow_iap_callbacks.outbox import journal_folder
from mlflow_iap_callbacks.tags import ENDED_TAG
from own_log import said_by_us
from virtual_process import VirtualClock, VirtualProcess

NewProcess = Callable[[], VirtualProcess]


def _limit(process: VirtualProcess) -> closing.Deadline:
    return closing.Deadline(process.clock.monotonic, 30.0)


def _exit(*processes: VirtualProcess) -> None:
    """Close the processes together, like one process that logs to several servers."""
    senders = [process.sender for process in processes]
    end = [partial(lifecycle._end_runs, senders), partial(lifecycle._adopt, senders)]
    closing.close(senders, _limit(processes[0]), end=end, draw=[])


def test_open_runs_are_ended_and_delivered(server: FakeMlflow, process: VirtualProcess) -> None:
    as_asked, abandoned = process.begin(), process.begin()
    as_asked.finish_at_exit("FINISHED")
    abandoned.log_metrics({"loss": 1.0})
    _exit(process)
    assert server.run(as_asked.key).status == "FINISHED"
    run = server.run(abandoned.key)
    assert (run.status, run.curve("loss")) == ("FAILED", [(0, 1.0)])
    assert run.tags[ENDED_TAG] == "The process ended before the run was finished."
    assert process.sender.waiting == 0


def test_the_records_of_dead_processes_are_delivered(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess
) -> None:
    dead = VirtualProcess(server, clock)
    run = dead.begin()
    run.log_metrics({"loss": 1.0})
    dead.die()
    process.begin().finish()
    _exit(process)
    assert server.run(run.key).curve("loss") == [(0, 1.0)]


def test_an_unreachable_server_is_given_up_after_five_seconds(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess
) -> None:
    server.is_away = True
    process.begin().finish()
    began = clock.monotonic()
    _exit(process)
    assert 5.0 <= clock.monotonic() - began < 10.0


def test_records_are_delivered_to_a_server_that_comes_back_in_time(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess
) -> None:
    run = process.begin()
    server.is_away = True
    back_at = clock.monotonic() + 3.0

    def come_back() -> bool:
        server.is_away = clock.monotonic() < back_at
        return process.sender.deliver_next()

    clock.meanwhile = come_back
    _exit(process)
    assert server.run(run.key).status == "FAILED"
    assert process.sender.waiting == 0


@pytest.mark.parametrize("count", [1, 20])
def test_all_servers_share_the_time_limit(
    count: int, server: FakeMlflow, clock: VirtualClock, process: VirtualProcess
) -> None:
    others = [
        VirtualProcess(FakeMlflow(f"https://other-{number}.example"), clock)
        for number in range(count)
    ]
    for each in (process, *others):
        each.begin().finish()
    clock.meanwhile = lambda: False  # nothing is ever delivered
    began = clock.monotonic()
    _exit(process, *others)
    assert 30.0 <= clock.monotonic() - began < 32.0
    assert not server.runs
    for each in others:
        each.close()


def test_many_unreachable_servers_are_given_up_at_the_same_time(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess
) -> None:
    servers = [FakeMlflow(f"https://other-{number}.example") for number in range(9)]
    others = [VirtualProcess(each, clock) for each in servers]
    for each in (process, *others):
        each.begin().finish()
    for away in (server, *servers):
        away.is_away = True
    clock.meanwhile = lambda: any(
        each.sender.deliver_next() for each in (process, *others) if not each.sender.is_away
    )
    began = clock.monotonic()
    _exit(process, *others)
    assert 5.0 <= clock.monotonic() - began < 10.0
    for each in others:
        each.close()


def test_ctrl_c_stops_the_delivery_and_reports_what_was_sent_and_what_stays(
    server: FakeMlflow,
    clock: VirtualClock,
    process: VirtualProcess,
    caplog: pytest.LogCaptureFixture,
) -> None:
    process.begin().finish()
    process.begin().finish()
    turns = iter([process.sender.deliver_next])

    def interrupt() -> bool:
        for turn in turns:
            return turn()
        raise KeyboardInterrupt

    clock.meanwhile = interrupt
    with pytest.raises(KeyboardInterrupt):
        closing.flush(process.sender, None)
    first, second = said_by_us(caplog)
    assert first == "Interrupted after sending 2 records to https://mlflow.example."
    assert second.startswith("2 records left on disk for https://mlflow.example.")


def test_an_interrupted_exit_raises_nothing_and_reports_the_interruption_once(
    server: FakeMlflow,
    clock: VirtualClock,
    process: VirtualProcess,
    caplog: pytest.LogCaptureFixture,
) -> None:
    process.begin().finish()

    def interrupt() -> bool:
        raise KeyboardInterrupt

    clock.meanwhile = interrupt
    lifecycle.exit_process(30.0)
    first, second = said_by_us(caplog)
    assert first == "Interrupted after sending 0 records to https://mlflow.example."
    assert second.startswith("2 records left on disk for https://mlflow.example.")
    assert not server.runs


@pytest.mark.parametrize("is_more_logged", [False, True])
def test_an_exit_tries_again_after_an_interruption_only_if_more_was_logged(
    server: FakeMlflow,
    clock: VirtualClock,
    process: VirtualProcess,
    caplog: pytest.LogCaptureFixture,
    is_more_logged: bool,
) -> None:
    run = process.begin()
    run.finish()

    def interrupt() -> bool:
        raise KeyboardInterrupt

    meanwhile, clock.meanwhile = clock.meanwhile, interrupt
    with pytest.raises(KeyboardInterrupt):
        closing.close([process.sender], _limit(process), end=[], draw=[])
    clock.meanwhile = meanwhile
    caplog.clear()
    server.is_away = not is_more_logged
    if is_more_logged:
        process.begin().finish()
    began = clock.monotonic()
    lifecycle.exit_process(30.0)
    assert said_by_us(caplog) == []
    assert len(server.runs) == (2 if is_more_logged else 0)
    assert is_more_logged or clock.monotonic() == began


def test_runs_end_before_they_are_delivered_and_plots_are_drawn_last(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    study, done = process.begin(), []

    def end(deadline: closing.Deadline) -> None:
        done.append(("end", deadline.left))
        study.finish()

    def draw(deadline: closing.Deadline) -> None:
        done.append((server.run(study.key).status, deadline.left))
        study.log_text("a plot", "plot.html")

    assert closing.close([process.sender], _limit(process), end=[end], draw=[draw])
    assert done == [("end", 30.0), ("FINISHED", 30.0)]
    assert server.run(study.key).artifacts == {"plot.html": b"a plot"}
    assert server.run(study.key).status == "FINISHED"


def test_a_process_that_draws_at_exit_leaves_no_journal(
    server: FakeMlflow, process: VirtualProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = process.begin()
    study.finish_at_exit("FINISHED")
    draw = [lambda deadline: study.log_text("a plot", "plot.html")]
    monkeypatch.setattr(lifecycle, "draw_at_exit", draw)
    lifecycle.exit_process(30.0)
    assert server.run(study.key).artifacts == {"plot.html": b"a plot"}
    assert server.run(study.key).status == "FINISHED"
    assert list(journal_folder.folder().iterdir()) == []


def test_a_run_that_another_process_has_not_created_yet_is_waited_for(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess, new_process: NewProcess
) -> None:
    parent = new_process().begin()
    process.enter()
    copy = pickle.loads(pickle.dumps(parent))
    copy.log_metrics({"loss": 1.0})
    began = clock.monotonic()
    _exit(process)
    assert clock.monotonic() - began >= 30.0
    assert process.sender.waiting == 1


def test_nothing_is_drawn_if_the_server_is_unreachable(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    server.is_away = True
    process.begin().finish()
    drawn: list[closing.Deadline] = []
    assert not closing.close([process.sender], _limit(process), end=[], draw=[drawn.append])
    assert drawn == []


def test_flush_keeps_trying_until_its_timeout(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess
) -> None:
    server.is_away = True
    process.begin().finish()
    began = clock.monotonic()
    assert not closing.flush(process.sender, 40.0)
    assert 40.0 <= clock.monotonic() - began < 41.0


def test_a_deadline_can_only_be_made_earlier(clock: VirtualClock) -> None:
    deadline = closing.Deadline(clock.monotonic, 30.0)
    deadline.shorten(60.0)
    assert deadline.left == 30.0
    deadline.shorten(10.0)
    clock.advance(4.0)
    assert deadline.left == 6.0
    clock.advance(10.0)
    assert deadline.left == 0.0


def test_records_that_stay_on_disk_are_counted_once(
    process: VirtualProcess, caplog: pytest.LogCaptureFixture
) -> None:
    run = process.begin()
    run.log_metrics({"loss": 1.0})
    closing.report_rest(process.sender)
    (report,) = said_by_us(caplog)
    assert report.startswith("2 records left on disk for https://mlflow.example. `mlflow-iap sync`")


def test_nothing_is_reported_if_everything_is_delivered(
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
    tmp_path: Path,
) -> None:
    too_long = tmp_path.joinpath(*["no journal can be made here"] * 200)
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(too_long))
    process = VirtualProcess(server, clock)
    process.begin().finish()
    caplog.clear()
    closing.report_rest(process.sender)
    (report,) = said_by_us(caplog)
    assert report.startswith("2 records for https://mlflow.example lost: ")
    process.close()


def test_an_exit_logs_what_is_known_only_at_the_end_and_then_delivers_it(
    server: FakeMlflow, process: VirtualProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = process.begin()
    given = []

    def log_last(deadline: closing.Deadline) -> None:
        given.append(deadline.left)
        run.log_metrics({"last": 1.0})
        run.finish()

    monkeypatch.setattr(lifecycle, "end_at_exit", [log_last])
    lifecycle.exit_process(7.0)
    assert given == [7.0]
    assert server.run(run.key).curve("last") == [(0, 1.0)]
    assert server.run(run.key).status == "FINISHED"


def test_a_process_that_continues_after_its_exit_gets_another_sender(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin()
    lifecycle.exit_process(7.0)
    assert not process.sender.outboxes
    sender = lifecycle.sender_for(process.client)
    assert sender is not process.sender
    run.log_metrics({"loss": 1.0})
    assert sender.flush(30.0)
    assert server.run(run.key).curve("loss") == [(0, 1.0)]
    sender.close()


def test_clients_of_the_same_server_share_a_sender_even_if_its_uri_differs_in_form() -> None:
    server = FakeMlflow("https://ada:secret@mlflow.example/")
    same = FakeMlflow("https://mlflow.example")
    senders = {lifecycle.sender_for(FakePlainClient(each)) for each in (server, same)}
    (sender,) = senders
    assert sender.server == "https://mlflow.example"
