"""``mlflow-iap status`` and ``sync`` with journals of this process, without a server."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from fake_mlflow import FakeClient, FakeMlflow
from mlflow_iap_callbacks.cli.commands import main
from mlflow_iap_callbacks.cli.sync import send
from mlflow_iap_callbacks.delivery import lifecycle
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from mlflow_iap_callbacks.outbox.journal_folder import new_outbox, survey

_URI = "https://mlflow.example"


@pytest.fixture
def server() -> FakeMlflow:
    return FakeMlflow(_URI)


@pytest.fixture
def leave(server: FakeMlflow) -> Callable[..., str]:
    """Leaves the journal of a process that ended while its server was down; returns a run's key."""

    def leave(uri: str = _URI, *, is_refused: bool = False) -> str:
        away = server if uri == _URI else FakeMlflow(uri)
        away.is_away = not is_refused
        if is_refused:
            away.refuse("log_batch", "no room", times=100)
        run = RunWriter(FakeClient(away), "experiment", run_name="left")
        run.log_metrics({"loss": 0.5}, step=1)
        run.log_metrics({"loss": 0.25}, step=2)
        run.finish()
        lifecycle.exit_process(10.0 if is_refused else 0.0)
        away.clear_faults()
        return run.key

    return leave


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


# --- status ----------------------------------------------------------------------------------


def test_status_says_that_nothing_is_waiting_and_where_it_looked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", "/nowhere")
    shown = _run("status")
    assert (shown.exit_code, shown.output) == (0, "Nothing waits in /nowhere.\n")


def test_status_shows_what_a_dead_process_left_behind_and_why(leave: Callable[..., str]) -> None:
    leave()
    shown = _run("status").output
    assert re.search(r"process +\d+ on \S+ \(dead\), started \d:\d\d:\d\d ago", shown)
    assert re.search(rf"server +{_URI}\s", shown)
    assert "waiting" in shown
    assert "4 records of 1 runs (1 finish, 2 metrics, 1 start)" in shown
    assert re.search(rf"on disk +{survey()[0].path}, [\d.]+ kB", shown)
    assert not re.search("refused|unreadable", shown)
    assert "`mlflow-iap sync` sends what dead processes left." in shown


def test_status_shows_what_mlflow_refused(leave: Callable[..., str]) -> None:
    leave(is_refused=True)
    shown = _run("status").output
    assert re.search(r"waiting +0 records of 0 runs\s", shown), shown
    assert re.search(r"refused +2 x no room", shown), shown
    assert "mlflow-iap sync" not in shown


def test_status_does_not_disturb_a_live_process() -> None:
    outbox = new_outbox(_URI)
    run = outbox.begin("key", "name:experiment")
    outbox.intake.append(run.number, "metrics", (0, 0, {"loss": 0.5}))
    try:
        shown = _run("status").output
        assert "(alive)" in shown
        assert "1 records of 1 runs (1 metrics)" in shown
        assert "mlflow-iap sync" not in shown
        assert _run("sync").output.startswith("Nothing waits")
    finally:
        outbox.close()


def test_status_says_why_a_journal_cannot_be_read(leave: Callable[..., str]) -> None:
    leave()
    (journal,) = survey()
    journal.path.write_bytes(b"damaged" * 1000)
    assert re.search(r"unreadable +file is not a database", _run("status").output)


# --- sync ------------------------------------------------------------------------------------


def test_a_dry_run_says_for_each_server_what_would_be_sent_and_sends_nothing(
    leave: Callable[..., str], server: FakeMlflow
) -> None:
    leave()
    leave()
    leave("https://another.example")
    calls = list(server.calls)
    dry = _run("sync", "--dry-run")
    assert (dry.exit_code, dry.output.splitlines()) == (
        0,
        [
            "would send 4 records of 1 runs for https://another.example",
            f"would send 8 records of 2 runs for {_URI}",
        ],
    )
    assert server.calls == calls


def test_refused_records_count_as_waiting_only_on_request(leave: Callable[..., str]) -> None:
    leave(is_refused=True)
    assert _run("sync", "--dry-run").output.startswith("Nothing waits")
    asked = _run("sync", "--dry-run", "--refused").output
    assert asked == f"would send 2 records of 0 runs for {_URI}\n"


def test_an_invalid_server_is_an_error_and_the_others_still_get_their_records(
    leave: Callable[..., str],
) -> None:
    leave("http://first.example")
    leave("http://second.example")
    done = _run("sync")
    assert done.exit_code == 1
    assert re.findall(r"Error: (\S+) would send tokens in plain text", done.output) == [
        "http://first.example",
        "http://second.example",
    ]
    assert [line for line in done.output.splitlines() if not line.startswith("Error")] == [
        "4 records wait for http://first.example",
        "4 records wait for http://second.example",
    ]


def test_sending_delivers_everything_and_leaves_nothing_on_disk(
    leave: Callable[..., str], server: FakeMlflow
) -> None:
    keys = [leave(), leave()]
    assert send(FakeClient(server), _URI, refused=False) == 0
    for key in keys:
        assert server.run(key).curve("loss") == [(1, 0.5), (2, 0.25)]
        assert server.run(key).status == "FINISHED"
    assert survey() == []


def test_sending_to_an_unreachable_server_keeps_everything(
    leave: Callable[..., str], server: FakeMlflow
) -> None:
    key = leave()
    server.is_away = True
    assert send(FakeClient(server), _URI, refused=False) == 4
    (journal,) = survey()
    assert (journal.records(), journal.trouble) == (4, "The server is away.")
    server.is_away = False
    assert send(FakeClient(server), _URI, refused=False) == 0
    assert server.run(key).status == "FINISHED"


def test_refused_records_are_sent_again_on_request(
    leave: Callable[..., str], server: FakeMlflow
) -> None:
    key = leave(is_refused=True)
    assert send(FakeClient(server), _URI, refused=False) == 0
    assert server.run(key).curve("loss") == []
    assert send(FakeClient(server), _URI, refused=True) == 0
    assert server.run(key).curve("loss") == [(1, 0.5), (2, 0.25)]
    assert survey() == []
