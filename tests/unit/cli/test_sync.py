"""``mlflow-iap status`` and ``sync`` with journals of this process, without a server."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fake_mlflow import FakeClient, FakeMlflow
from mlflow_iap_callbacks.cli import other_hosts
from mlflow_iap_callbacks.cli.commands import main
from mlflow_iap_callbacks.cli.sync import send
from mlflow_iap_callbacks.delivery import lifecycle, progress
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from mlflow_iap_callbacks.delivery.sender import Sender
from mlflow_iap_callbacks.outbox import owner
from mlflow_iap_callbacks.outbox.file_lock import FileLock
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


def test_status_says_that_no_records_are_waiting_and_where_it_looked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(tmp_path / "nowhere"))
    shown = _run("status")
    assert (shown.exit_code, shown.output) == (
        0,
        f"No records are waiting in {tmp_path}/nowhere.\n",
    )


def test_status_shows_what_a_dead_process_left_behind_and_why(leave: Callable[..., str]) -> None:
    leave()
    shown = _run("status").output
    assert re.search(r"process +\d+ on \S+ \(dead\), started \d:\d\d:\d\d ago", shown)
    assert re.search(rf"server +{_URI}\s", shown)
    assert "waiting" in shown
    assert "4 records of 1 run (1 finish, 2 metrics, 1 start)" in shown
    assert re.search(rf"on disk +{survey()[0].path}, [\d.]+ kB", shown)
    assert not re.search("refused|unreadable", shown)
    assert "`mlflow-iap sync` sends what dead processes left behind." in shown


def test_status_shows_a_path_that_the_encoding_of_the_output_lacks(
    leave: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_IAP_OUTBOX", str(tmp_path / "na\u00efve \u2603"))
    leave()
    done = CliRunner(charset="ascii").invoke(main, ["status"])
    assert done.exit_code == 0
    assert "na\\xefve \\u2603" in done.output


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
        assert "1 record of 1 run (1 metrics)" in shown
        assert "mlflow-iap sync" not in shown
        assert _run("sync").output.startswith("There is nothing to send")
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
            "would send 4 records of 1 run to https://another.example",
            f"would send 8 records of 2 runs to {_URI}",
        ],
    )
    assert server.calls == calls


def test_refused_records_count_as_waiting_only_on_request(leave: Callable[..., str]) -> None:
    leave(is_refused=True)
    assert _run("sync", "--dry-run").output.startswith("There is nothing to send")
    asked = _run("sync", "--dry-run", "--refused").output
    assert asked == f"would send 2 records of 0 runs to {_URI}\n"


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
        "4 records waiting for http://first.example",
        "4 records waiting for http://second.example",
    ]


def test_sending_delivers_everything_and_leaves_nothing_on_disk(
    leave: Callable[..., str], server: FakeMlflow
) -> None:
    keys = [leave(), leave()]
    assert send(FakeClient(server), _URI, refused=False).waiting == 0
    for key in keys:
        assert server.run(key).curve("loss") == [(1, 0.5), (2, 0.25)]
        assert server.run(key).status == "FINISHED"
    assert survey() == []


def test_sending_to_an_unreachable_server_keeps_everything(
    leave: Callable[..., str], server: FakeMlflow
) -> None:
    key = leave()
    server.is_away = True
    assert send(FakeClient(server), _URI, refused=False).waiting == 4
    (journal,) = survey()
    assert (journal.records(), journal.trouble) == (4, "The server is away.")
    server.is_away = False
    assert send(FakeClient(server), _URI, refused=False).waiting == 0
    assert server.run(key).status == "FINISHED"


def test_refused_records_are_sent_again_on_request(
    leave: Callable[..., str], server: FakeMlflow
) -> None:
    key = leave(is_refused=True)
    assert send(FakeClient(server), _URI, refused=False).waiting == 0
    assert server.run(key).curve("loss") == []
    assert send(FakeClient(server), _URI, refused=True).waiting == 0
    assert server.run(key).curve("loss") == [(1, 0.5), (2, 0.25)]
    assert survey() == []


# --- output ----------------------------------------------------------------------------------


@pytest.fixture
def sync(server: FakeMlflow, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs the command with a client of the server in memory."""
    monkeypatch.setattr("mlflow_iap_callbacks.cli.sync._client", lambda _: FakeClient(server))
    return lambda *arguments: _run("sync", *arguments)


def test_sync_says_how_many_records_mlflow_accepted(
    leave: Callable[..., str], sync: Callable[..., Result]
) -> None:
    leave()
    leave()
    done = sync()
    assert (done.exit_code, done.output) == (0, f"sent 8 records to {_URI}\n")


def test_records_that_mlflow_refuses_are_not_counted_as_sent(
    leave: Callable[..., str], server: FakeMlflow, sync: Callable[..., Result]
) -> None:
    leave()
    server.refuse("log_batch", "no room", times=100)
    done = sync()
    assert (done.exit_code, done.output.splitlines()) == (
        0,
        [
            f"sent 2 records to {_URI}",
            "MLflow refused 2 records; run `mlflow-iap status` for the reasons.",
        ],
    )


def test_sync_says_why_records_are_still_waiting_and_exits_with_1(
    leave: Callable[..., str], server: FakeMlflow, sync: Callable[..., Result]
) -> None:
    leave()
    server.is_away = True
    done = sync()
    assert done.exit_code == 1
    assert f"sent 0 records to {_URI}" in done.output
    assert f"4 records waiting for {_URI}: The server is away." in done.output


def test_an_interrupted_sync_says_what_was_sent_and_what_is_left(
    leave: Callable[..., str], sync: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave()

    def interrupt(sender: Sender, console: object) -> None:
        assert sender.flush(20.0)
        sender.begin("new", "experiment").outbox.intake.append(1, "start", {})
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "deliver", interrupt)
    done = sync()
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        f"sent 4 records to {_URI}",
        f"1 record waiting for {_URI}: interrupted; run `mlflow-iap sync` to continue",
        "Aborted!",
    ]


def test_a_journal_that_cannot_be_taken_over_is_listed_with_the_reason(
    leave: Callable[..., str], sync: Callable[..., Result]
) -> None:
    leave()
    path = survey()[0].path
    path.chmod(0o666)
    leave()
    done = sync()
    assert done.exit_code == 1
    assert f"sent 4 records to {_URI}" in done.output
    assert f"{path} cannot be sent: {path} can be written to by other users" in done.output


def test_only_undamaged_records_of_a_damaged_journal_count_as_sent(
    leave: Callable[..., str], server: FakeMlflow, sync: Callable[..., Result]
) -> None:
    key = leave()
    (journal,) = survey()
    (intake,) = journal.path.parent.glob(f"{journal.path.stem}.*.intake")
    content = bytearray(intake.read_bytes())
    content[content.index(b"loss") + 1] ^= 4
    intake.write_bytes(content)
    done = sync()
    assert (done.exit_code, done.output) == (0, f"sent 3 records to {_URI}\n")
    assert len(server.run(key).curve("loss")) == 1


def test_a_damaged_journal_of_an_unknown_server_is_sent_once_the_variable_names_its_server(
    leave: Callable[..., str],
    server: FakeMlflow,
    sync: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = leave()
    (journal,) = survey()
    for file in [journal.path, *journal.path.parent.glob(f"{journal.path.stem}.*.intake")]:
        file.write_bytes(file.read_bytes().replace(_URI.encode(), b"x" * len(_URI)))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = sync()
    assert done.exit_code == 1
    assert f"{journal.path} is damaged, and its server is unknown" in done.output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _URI)
    done = sync()
    assert (done.exit_code, done.output) == (0, f"sent 4 records to {_URI}\n")
    assert server.run(key).status == "FINISHED"


def test_a_journal_in_use_is_listed_with_its_process(sync: Callable[..., Result]) -> None:
    outbox = new_outbox(_URI)
    run = outbox.begin("key", "name:experiment")
    outbox.intake.append(run.number, "metrics", (0, 0, {"loss": 0.5}))
    try:
        done = sync()
        assert done.exit_code == 1  # its record waits
        assert f"{outbox.path} is in use by process {os.getpid()} on " in done.output
    finally:
        outbox.close()


def test_an_open_run_of_a_live_process_leaves_nothing_to_send(sync: Callable[..., Result]) -> None:
    outbox = new_outbox(_URI)
    run = outbox.begin("key", "name:experiment")
    outbox.intake.append(run.number, "metrics", (0, 0, {"loss": 0.5}))
    outbox.collect()
    outbox.settle(run, outbox.read(run, outbox.last_seq))
    try:
        done = sync()
        assert done.exit_code == 0
        assert f"{outbox.path} is in use by process {os.getpid()} on " in done.output
    finally:
        outbox.close()


# --- other hosts -----------------------------------------------------------------------------


@pytest.fixture
def left_elsewhere(leave: Callable[..., str]) -> Path:
    """The journal of a process that ended on another host."""
    leave()
    path = survey()[0].path
    for file in path.parent.glob(f"{path.stem}*"):
        file.rename(file.with_name(file.name.replace(owner.host(), "another-host")))
    return path.with_name(path.name.replace(owner.host(), "another-host"))


def test_a_journal_of_another_host_is_listed_but_not_sent(
    left_elsewhere: Path, sync: Callable[..., Result], server: FakeMlflow
) -> None:
    done = sync()
    assert done.exit_code == 1
    assert f"{left_elsewhere} is from another host" in done.output
    assert "`mlflow-iap sync --other-hosts` sends it" in done.output
    assert server.runs == {}
    assert "(another host)" in _run("status").output


def test_the_journal_of_a_process_of_another_host_that_is_not_alive_is_sent(
    left_elsewhere: Path,
    sync: Callable[..., Result],
    server: FakeMlflow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(other_hosts, "SECONDS_TO_WATCH", 0.0)
    done = sync("--other-hosts")
    assert done.exit_code == 0
    assert f"sent 4 records to {_URI}" in done.output
    assert len(server.runs) == 1
    assert survey() == []


def test_the_journal_of_a_process_of_another_host_that_is_alive_is_not_sent(
    left_elsewhere: Path,
) -> None:
    def stir(_: float) -> None:
        lock = FileLock(left_elsewhere.with_suffix(".lock"))
        owner.beat(lock)
        lock.release()

    assert other_hosts.unmoved(survey(), sleep=stir) == []
    assert other_hosts.unmoved(survey(), sleep=lambda _: None) == [left_elsewhere]


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_terminal_the_user_says_whether_the_processes_of_a_host_have_ended(
    left_elsewhere: Path, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    with CliRunner().isolation(input="y\n" if answer else "n\n") as (out, *_):
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        abandoned = other_hosts.abandoned(survey())
        asked = out.getvalue().decode()
    assert abandoned == ([left_elsewhere] if answer else [])
    question = r"\S+ left 1 journal and last wrote \d:\d\d:\d\d ago\. Have its processes ended\?"
    assert re.match(question, asked)
