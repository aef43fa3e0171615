"""What the sender does with the records of its process and of dead processes."""

from __future__ import annotations

import itertools
import json
import math
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from fake_mlflow import FakeClient, FakeMlflow, FakePlainClient
from mlflow_iap_callbacks.delivery import closing
from mlflow_iap_callbacks.delivery.mlflow_calls import MlflowCalls
from mlflow_iap_callbacks.delivery.refusals import refusal
from mlflow_iap_callbacks.delivery.run_creation import Mode
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from mlflow_iap_callbacks.delivery.schedule import Schedule
from mlflow_iap_callbacks.delivery.sender import Sender
from mlflow_iap_callbacks.outbox import Outbox, QueuedRun, journal_folder
from mlflow_iap_callbacks.tags import AGAIN_TAG, AGREED_TAG, RUN_KEY_TAG
from own_log import said_by_us
from virtual_process import VirtualClock, VirtualProcess
from waiting import wait_until

NewProcess = Callable[[], VirtualProcess]


def _log(run: RunWriter, steps: range) -> None:
    for step in steps:
        run.log_metrics({"m": step / 2}, step=step, timestamp=step)


def _line(steps: range) -> list[tuple[int, float]]:
    return [(step, step / 2) for step in steps]


def _dataset(name: str) -> Any:
    fields = {"name": name, "digest": "d", "source_type": "s", "source": "{}"}
    return SimpleNamespace(to_dict=lambda: fields)


def _files() -> list[str]:
    return sorted(path.name for path in journal_folder.folder().iterdir())


# --- requests ----------------------------------------------------------------------------------


def test_points_within_five_seconds_are_one_request(
    server: FakeMlflow, process: VirtualProcess, clock: VirtualClock
) -> None:
    run = process.begin()
    process.deliver_for(10.0)
    del server.calls[:]
    for step in range(100):
        _log(run, range(step, step + 1))
        process.deliver()
        clock.advance(0.03)
    assert server.calls == []
    process.deliver_for(5.0)
    assert server.calls == ["log_batch"]
    assert server.run(run.key).curve("m") == _line(range(100))


@pytest.fixture
def requests(server: FakeMlflow, clock: VirtualClock) -> list[float]:
    """When each request was sent; each takes 6 ms of processor time and 0.1 s in all."""
    times: list[float] = []

    def note(_: str) -> None:
        times.append(clock.monotonic())
        clock.cpu_of_sender += 0.006
        clock.advance(0.1)

    server.on_request = note
    return times


@pytest.fixture
def training(process: VirtualProcess, clock: VirtualClock, requests: list[float]) -> RunWriter:
    """The run of training that keeps a processor busy. MLflow has created it."""
    run = process.begin()
    process.deliver_for(10.0)
    clock.is_training = True
    del requests[:]
    return run


@pytest.mark.parametrize(("is_training", "expected"), [(True, 4.1), (False, 0.1)])
def test_requests_leave_the_interpreter_to_training_that_keeps_a_processor_busy(
    is_training: bool,
    expected: float,
    process: VirtualProcess,
    clock: VirtualClock,
    requests: list[float],
) -> None:
    run = process.begin()
    process.deliver_for(10.0)
    clock.is_training = is_training
    _log(run, range(7_500))  # 8 requests
    clock.advance(5.0)
    del requests[:]
    process.deliver_for(30.0)
    assert [later - earlier for earlier, later in itertools.pairwise(requests)] == pytest.approx(
        [expected] * 7
    )


def test_records_that_training_adds_wait_for_the_end_of_a_pause_too(
    process: VirtualProcess, clock: VirtualClock, requests: list[float], training: RunWriter
) -> None:
    for tick in range(100):
        _log(training, range(tick * 1_000, (tick + 1) * 1_000))
        process.deliver()
        clock.advance(0.1)
    assert len(requests) > 2
    assert min(later - earlier for earlier, later in itertools.pairwise(requests)) > 4.0


def test_records_wait_for_at_most_half_a_minute_longer_because_of_training(
    server: FakeMlflow, process: VirtualProcess, clock: VirtualClock, training: RunWriter
) -> None:
    _log(training, range(100_000))
    clock.advance(5.0)
    start = clock.monotonic()
    while len(server.run(training.key).curve("m")) < 100_000:
        process.deliver_for(0.1)
    assert clock.monotonic() - start < 41.0


def test_other_runs_are_delivered_while_one_pauses_for_training(
    server: FakeMlflow, process: VirtualProcess, clock: VirtualClock, training: RunWriter
) -> None:
    _log(training, range(20_000))
    clock.advance(5.0)
    process.deliver_for(1.0)
    other = process.begin()
    other.finish()
    process.deliver_for(2.0)
    assert server.run(other.key).status == "FINISHED"
    assert len(server.run(training.key).curve("m")) < 10_000


def test_a_run_that_has_ended_does_not_pause_for_training(
    server: FakeMlflow, process: VirtualProcess, training: RunWriter
) -> None:
    run = process.begin()
    _log(run, range(7_500))
    run.finish()
    process.deliver()
    assert server.run(run.key).status == "FINISHED"


def test_a_pause_ends_when_its_run_ends(
    server: FakeMlflow, process: VirtualProcess, requests: list[float], training: RunWriter
) -> None:
    _log(training, range(2_500))
    process.deliver_for(0.2)
    assert len(requests) == 1
    training.finish()
    process.deliver_for(0.4)
    assert server.run(training.key).curve("m") == _line(range(2_500))
    assert server.run(training.key).status == "FINISHED"


def test_requests_have_no_pauses_while_somebody_waits_for_them(
    process: VirtualProcess, requests: list[float], training: RunWriter
) -> None:
    _log(training, range(7_500))  # 8 requests
    assert process.sender.flush(60.0)
    assert requests[-1] - requests[0] == pytest.approx(0.7)


def test_a_finished_run_takes_three_requests_without_waiting(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    server.add_experiment("experiment")
    run = process.begin()
    run.log_params({"p": 1})
    _log(run, range(100))
    run.finish()
    process.deliver()
    assert server.calls == [
        "get_experiment_by_name",
        "create_run",
        "log_batch",
        "update_run_info",
    ]
    assert process.sender.waiting == 0
    assert process.sender.delivered == 103


def test_points_of_many_requests_arrive_in_order(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin()
    _log(run, range(3500))
    run.finish()
    process.deliver()
    assert server.run(run.key).curve("m") == _line(range(3500))
    assert server.calls.count("log_batch") == 4


def test_all_requests_use_the_client_given_last(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin()
    process.deliver()
    used: list[str] = []

    class _Client(FakeClient):
        def log_batch(self, *args: object, **kwargs: object) -> None:
            used.append("log_batch")
            super().log_batch(*args, **kwargs)  # type: ignore[arg-type]

    process.sender.use(_Client(server))
    run.log_params({"p": 1})
    run.finish()
    process.deliver()
    assert used == ["log_batch"]


# --- failures ----------------------------------------------------------------------------------


def _file(tmp_path: Path, name: str = "a.txt", text: str = "a") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


_UPLOAD_FAILS = MlflowException("API request to mpu/create failed with error code 500 != 200.")


@pytest.mark.parametrize("method", ["log_artifact", "log_model_artifacts"])
@pytest.mark.parametrize(
    "error", [_UPLOAD_FAILS, ConnectionError("reset by peer"), RuntimeError("no bucket"), None]
)
def test_a_failing_upload_is_set_aside_and_the_rest_of_its_run_is_sent(
    method: str,
    error: Exception | None,
    server: FakeMlflow,
    process: VirtualProcess,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.drop(method, error, times=float("inf"))
    run = process.begin()
    if method == "log_artifact":
        run.log_artifact(_file(tmp_path))
    else:
        (tmp_path / "saved").mkdir()
        run.log_model(_file(tmp_path / "saved", "MLmodel", "{}").parent)
    _log(run, range(3))
    run.finish()
    process.deliver_for(6.0)
    found = server.run(run.key)
    assert (found.curve("m"), found.status) == (_line(range(3)), "FINISHED")
    assert process.sender.waiting == 1
    assert not process.sender.is_away
    (text,) = said_by_us(caplog)
    assert "This is retried later" in text
    (report,) = journal_folder.survey()
    assert (report.records(), report.runs, report.trouble is None) == (1, 1, False)
    server.clear_faults()
    process.deliver_for(100.0)
    assert process.sender.waiting == 0
    assert found.artifacts == ({"a.txt": b"a"} if method == "log_artifact" else {})
    assert len(server.models) == (method != "log_artifact")
    assert found.status == "FINISHED"
    process.close()
    assert _files() == []


def test_an_upload_that_keeps_failing_is_retried_at_growing_intervals_and_then_kept_as_refused(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess, tmp_path: Path
) -> None:
    server.drop("log_artifact", _UPLOAD_FAILS, times=float("inf"))
    tries: list[float] = []
    server.on_request = lambda method: (
        tries.append(clock.monotonic()) if method == "log_artifact" else None
    )
    run = process.begin()
    run.log_artifact(_file(tmp_path))
    run.finish()
    process.deliver_for(7200.0)
    pauses = [round(after - before, -1) for before, after in itertools.pairwise(tries)]
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600]
    assert process.sender.waiting == 0
    assert process.sender.outbox.refusals() == 1
    # `mlflow-iap sync --refused` retries it, with the copy of the file.
    process.close()
    server.clear_faults()
    _file(tmp_path, text="changed")
    after = VirtualProcess(server, clock)
    after.sender.adopt(refused=True)
    after.deliver_for(1.0)
    assert server.run(run.key).artifacts == {"a.txt": b"a"}
    after.close()
    assert _files() == []


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_upload_that_was_set_aside_does_not_replace_a_newer_file(
    is_killed: bool,
    server: FakeMlflow,
    process: VirtualProcess,
    new_process: NewProcess,
    tmp_path: Path,
) -> None:
    server.drop("log_artifact", _UPLOAD_FAILS)
    run = process.begin()
    for text in ("old", "new"):
        run.log_artifact(_file(tmp_path, text=text), "notes")
        run.log_artifact(_file(tmp_path, f"{text}.txt", text), "notes")
    run.finish()
    if is_killed:
        process.deliver_for(6.0)
        process.die()
        process = new_process()
        process.sender.adopt()
    process.deliver_for(100.0)
    assert process.sender.waiting == 0
    assert server.run(run.key).artifacts == {
        "notes/a.txt": b"new",
        "notes/old.txt": b"old",
        "notes/new.txt": b"new",
    }


def test_an_upload_during_an_outage_keeps_its_place(
    server: FakeMlflow, process: VirtualProcess, tmp_path: Path
) -> None:
    run = process.begin()
    process.deliver()
    server.is_away = True
    run.log_artifact(_file(tmp_path))
    run.finish()
    process.deliver_for(60.0)
    assert process.sender.is_away
    server.is_away = False
    arrived: list[str] = []
    server.on_request = arrived.append
    process.deliver_for(60.0)
    assert arrived.index("log_artifact") < arrived.index("update_run_info")
    assert process.sender.waiting == 0


def test_an_upload_that_was_set_aside_survives_a_kill(
    server: FakeMlflow, process: VirtualProcess, new_process: NewProcess, tmp_path: Path
) -> None:
    server.drop("log_artifact", _UPLOAD_FAILS)
    run = process.begin()
    run.log_artifact(_file(tmp_path))
    run.finish()
    process.deliver_for(6.0)
    process.die()
    after = new_process()
    after.sender.adopt()
    after.deliver_for(6.0)
    assert server.run(run.key).artifacts == {"a.txt": b"a"}
    assert after.sender.waiting == 0


def test_an_upload_that_was_set_aside_does_not_delay_an_exit(
    server: FakeMlflow, clock: VirtualClock, process: VirtualProcess, tmp_path: Path
) -> None:
    server.drop("log_artifact", _UPLOAD_FAILS, times=float("inf"))
    run = process.begin()
    run.log_artifact(_file(tmp_path))
    run.finish()
    process.begin().finish()
    began = clock.monotonic()
    deadline = closing.Deadline(clock.monotonic, 30.0)
    assert not closing.close([process.sender], deadline, end=[], draw=[])
    assert clock.monotonic() - began < 10.0
    assert server.calls.count("log_artifact") == 1
    assert {run.status for run in server.runs.values()} == {"FINISHED"}


_POISON = "poison"


class _FailingOnPoison(FakeClient):
    """A client whose server fails on each request that contains certain data."""

    error: Exception = RestException({"error_code": "INTERNAL_ERROR", "message": "500"})
    is_healed = False
    server: FakeMlflow

    def _check(self, *parts: Any) -> None:
        if not self.is_healed and any(_POISON in str(vars(part)) for part in parts):
            self.server.calls.append("failed")
            raise self.error

    def create_run(
        self, experiment_id: str, start_time: Any = None, tags: Any = None, run_name: Any = None
    ) -> Any:
        if not self.is_healed and _POISON in f"{tags}{run_name}":
            raise self.error
        return super().create_run(experiment_id, start_time, tags, run_name)

    def log_batch(  # type: ignore[override]
        self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = (), **_: Any
    ) -> None:
        self._check(*metrics, *params, *tags)
        super().log_batch(run_id, metrics, params, tags)

    def log_inputs(self, run_id: str, datasets: Any = None, models: Any = None) -> None:
        self._check(*(given.dataset for given in datasets))
        super().log_inputs(run_id, datasets, models)


@pytest.fixture
def failing(server: FakeMlflow, process: VirtualProcess) -> _FailingOnPoison:
    client = process.client = _FailingOnPoison(server)
    process.sender.use(client)
    return client


def _log_poison(run: RunWriter, kind: str) -> None:
    if kind == "metrics":
        run.log_metrics({"fine": 1.0, _POISON: 2.0, "fine too": 3.0}, step=5)
    elif kind == "params":
        run.log_params({"fine": 1, "p": _POISON, "fine too": 3})
    elif kind == "tags":
        run.set_tags({"fine": 1, "p": _POISON, "fine too": 3})
    else:
        for name in ("fine", _POISON, "fine too"):
            run.log_input(_dataset(name))


def _values(server: FakeMlflow, run: RunWriter, kind: str) -> int:
    found = server.run(run.key)
    given: dict[str, Iterable[object]] = {
        **{"metrics": found.points, "params": found.params, "tags": found.tags},
        "input": found.inputs,
    }
    names = [str(name) for name in given[kind]]
    return sum("fine" in name or name == "p" or _POISON in name for name in names)


@pytest.mark.parametrize("kind", ["metrics", "params", "tags", "input"])
def test_only_values_that_make_the_server_fail_are_set_aside_and_the_rest_of_the_run_is_sent(
    kind: str,
    server: FakeMlflow,
    process: VirtualProcess,
    failing: _FailingOnPoison,
    clock: VirtualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = process.begin()
    _log(run, range(400))
    _log_poison(run, kind)
    _log(run, range(400, 900))
    run.finish()
    process.deliver_for(6.0)
    found = server.run(run.key)
    assert (found.curve("m"), found.status) == (_line(range(900)), "FINISHED")
    assert _values(server, run, kind) == 2
    assert process.sender.waiting == 1
    assert not process.sender.is_away
    assert server.calls.count("failed") <= 15
    (text,) = said_by_us(caplog)
    assert _POISON in text
    assert "fine" not in text
    failing.is_healed = True
    process.deliver_for(30.0)
    assert process.sender.waiting == 0
    assert _values(server, run, kind) == 3
    assert found.status == "FINISHED"
    process.close()
    assert _files() == []


@pytest.mark.parametrize("kind", ["metrics", "params", "tags", "input"])
def test_only_values_that_keep_making_the_server_fail_are_refused_in_the_end(
    kind: str, server: FakeMlflow, process: VirtualProcess, failing: _FailingOnPoison
) -> None:
    run = process.begin()
    _log_poison(run, kind)
    run.finish()
    process.deliver_for(7200.0)
    assert process.sender.waiting == 0
    assert process.sender.outbox.refusals() == 1
    (report,) = journal_folder.survey()
    (reason,) = report.refused
    assert "500" in reason
    assert _values(server, run, kind) == 2
    assert server.calls.count("failed") <= 30


def test_a_run_whose_tags_make_the_server_fail_is_created_without_them(
    server: FakeMlflow, process: VirtualProcess, failing: _FailingOnPoison
) -> None:
    run = process.begin(run_name="mine", tags={"p": _POISON, "fine": 1})
    _log(run, range(5))
    run.finish()
    process.deliver_for(120.0)
    found = server.run(run.key)
    assert (found.curve("m"), found.status) == (_line(range(5)), "FINISHED")
    assert (found.tags["fine"], found.tags["mlflow.runName"]) == ("1", "mine")
    assert process.sender.waiting == 1
    failing.is_healed = True
    process.deliver_for(700.0)
    assert found.tags["p"] == _POISON


@pytest.mark.parametrize(
    ("method", "kind", "content"),
    [
        (
            "_call_endpoint",
            "request",
            {"api": "LogOutputs", "body": '{"run_id": "%s", "models": []}', "endpoint": None},
        ),
        ("get_metric_history", "model_metrics", {"model_id": "m-1", "step": 0}),
    ],
)
def test_a_request_that_makes_the_server_fail_is_set_aside_and_the_rest_of_the_run_is_sent(
    method: str, kind: str, content: dict[str, Any], server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin()
    _log(run, range(1))
    process.deliver_for(6.0)
    server.drop(method, times=float("inf"))
    if "body" in content:
        content = {**content, "body": content["body"] % server.run(run.key).run_id}
    run._append(kind, content)
    _log(run, range(1, 3))
    run.finish()
    process.deliver_for(6.0)
    found = server.run(run.key)
    assert (found.curve("m"), found.status) == (_line(range(3)), "FINISHED")
    assert process.sender.waiting == 1
    server.clear_faults()
    process.deliver_for(100.0)
    assert (process.sender.waiting, process.sender.outbox.refused()) == (0, [])


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("between", ["nothing", "a delivery", "more than a request takes"])
def test_a_tag_that_was_set_aside_does_not_replace_a_newer_value(
    is_killed: bool,
    between: str,
    server: FakeMlflow,
    process: VirtualProcess,
    new_process: NewProcess,
    failing: _FailingOnPoison,
) -> None:
    run = process.begin()
    process.deliver_for(6.0)
    run.set_tags({"a": f"{_POISON} 1", "b": f"{_POISON} 1"})
    if between == "a delivery":
        process.deliver_for(6.0)
    elif between == "more than a request takes":
        _log(run, range(1500))
    run.set_tags({"a": "2"})
    process.deliver_for(6.0)
    assert server.run(run.key).tags["a"] == "2"
    assert process.sender.waiting == 1
    failing.is_healed = True
    if is_killed:
        process.die()
        process = new_process()
        process.sender.adopt()
    process.deliver_for(60.0)
    found = server.run(run.key)
    assert (found.tags["a"], found.tags["b"]) == ("2", f"{_POISON} 1")
    assert process.sender.waiting == 0


def test_a_tag_that_was_set_aside_does_not_replace_a_newer_value_in_the_same_journal(
    server: FakeMlflow,
    process: VirtualProcess,
    new_process: NewProcess,
    failing: _FailingOnPoison,
) -> None:
    run = process.begin()
    run.set_tags({"a": _POISON})
    process.deliver_for(6.0)
    run.set_tags({"a": "2"})
    process.die()
    failing.is_healed = True
    after = new_process()
    after.sender.adopt()
    after.deliver_for(60.0)
    assert server.run(run.key).tags["a"] == "2"
    assert after.sender.waiting == 0


def test_values_that_a_dead_process_left_are_set_aside_as_well(
    server: FakeMlflow, process: VirtualProcess, clock: VirtualClock
) -> None:
    run = process.begin()
    for kind in ("metrics", "tags"):
        _log_poison(run, kind)
    run.finish()
    process.die()
    after = VirtualProcess(server, clock, _FailingOnPoison)
    after.sender.adopt()
    after.deliver_for(6.0)
    found = server.run(run.key)
    assert (len(found.points), found.tags["fine too"], found.status) == (2, "3", "FINISHED")
    after.deliver_for(7200.0)
    assert after.sender.waiting == 0
    (report,) = journal_folder.survey()
    assert report.refused.total() == 2
    after.close()


def test_a_finish_that_makes_the_server_fail_is_refused_in_the_end(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    server.drop("update_run_info", _FailingOnPoison.error, times=math.inf)
    run = process.begin()
    run.finish()
    process.deliver_for(7200.0)
    assert process.sender.waiting == 0
    assert process.sender.outbox.refusals() == 1
    assert server.calls.count("update_run_info") == 9


def test_nothing_is_set_aside_while_the_server_can_only_be_read(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin()
    process.deliver_for(6.0)
    for method in ("log_batch", "set_tag"):
        server.drop(method, _FailingOnPoison.error, times=math.inf)
    _log(run, range(500))
    process.deliver_for(600.0)
    assert process.sender.is_away
    assert process.sender.waiting == 500
    assert len(list(process.sender.outbox.runs())) == 1
    server.clear_faults()
    process.deliver_for(60.0)
    assert server.run(run.key).curve("m") == _line(range(500))


def test_a_server_that_accepts_only_tags_is_not_flooded_with_requests(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin()
    process.deliver_for(6.0)
    server.drop("log_batch", _FailingOnPoison.error, times=math.inf)
    del server.calls[:]
    _log(run, range(3000))
    process.deliver_for(600.0)
    assert len(server.calls) < 500
    assert process.sender.waiting == 3000
    server.clear_faults()
    process.deliver_for(700.0)
    assert sorted(server.run(run.key).curve("m")) == _line(range(3000))


def test_a_data_set_that_mlflow_rejects_does_not_affect_others(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    class _Client(FakeClient):
        def log_inputs(self, run_id: str, datasets: Any = None, models: Any = None) -> None:
            if any(given.dataset.name == "odd" for given in datasets):
                server.refuse("log_inputs", "odd")
            super().log_inputs(run_id, datasets, models)

    process.sender.use(_Client(server))
    run = process.begin()
    process.sender.use(_Client(server))
    for name in ("a", "odd", "b"):
        run.log_input(_dataset(name))
    run.finish()
    process.deliver()
    assert [name for name, _ in server.run(run.key).inputs] == ["a", "b"]
    (report,) = journal_folder.survey()
    assert dict(report.refused) == {"odd": 1}


@pytest.mark.parametrize(
    ("error", "is_refused"),
    [
        *((MlflowException("Invalid artifact path: 'plots/'."), True), (KeyError("name"), False)),
        *((AttributeError("x"), False), (Exception("Could not get run status"), True)),
        *((RecursionError(), True), (UnicodeEncodeError("utf-8", "x", 0, 1, "y"), True)),
        (RestException({"error_code": "INTERNAL_ERROR", "message": "at the server"}), False),
        *((_UPLOAD_FAILS, False), (TimeoutError(), False), (OSError(28, "no space"), False)),
        (json.JSONDecodeError("a page", "<html>", 0), False),
        (MlflowException("The following failures occurred while uploading: 503"), False),
    ],
)
def test_a_rejection_by_the_client_itself_is_a_refusal(error: Exception, is_refused: bool) -> None:
    assert (refusal(error) is not None) == is_refused


def test_rejected_records_are_kept_and_reported_once_and_the_rest_arrives(
    server: FakeMlflow, process: VirtualProcess, caplog: pytest.LogCaptureFixture
) -> None:
    run = process.begin()
    run.log_params({"x": 1})
    for value in (2, 3):
        run.log_params({"x": value, f"y{value}": value})
    _log(run, range(5))
    run.finish()
    process.deliver()
    found = server.run(run.key)
    assert found.params == {"x": "1", "y2": "2", "y3": "3"}
    assert (found.curve("m"), found.status) == (_line(range(5)), "FINISHED")
    assert process.sender.outbox.refusals() == 2
    assert process.sender.waiting == 0
    (text,) = said_by_us(caplog)
    assert "MLflow rejected params {'x': '2'}" in text


def test_a_run_that_was_deleted_in_mlflow_is_refused_in_few_requests(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run, other = process.begin(), process.begin()
    process.deliver_for(10.0)
    server.run(run.key).is_deleted = True
    del server.calls[:]
    _log(run, range(1000))
    run.finish()
    other.finish()
    process.deliver()
    assert len(server.calls) < 6
    assert process.sender.outbox.refusals() == 1001
    assert server.run(other.key).status == "FINISHED"


def test_a_shared_run_goes_on_as_the_one_that_other_processes_agreed_on(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin(key="study", mode=Mode.SHARED)
    process.deliver_for(10.0)
    deleted = server.run(run.key)
    deleted.is_deleted = True
    tags = {RUN_KEY_TAG: run.key, AGREED_TAG: "true"}
    FakeClient(server).create_run(deleted.experiment_id, 1, tags)
    _log(run, range(3))
    process.deliver_for(10.0)
    child = process.begin(parent=run)
    process.deliver_for(10.0)
    agreed = server.run(run.key)
    assert agreed.curve("m") == _line(range(3))
    assert server.run(child.key).tags["mlflow.parentRunId"] == agreed.run_id
    assert process.sender.outbox.refusals() == 0


def _log_one_of(kind: str, run: RunWriter, tmp_path: Path) -> None:
    if kind == "metrics":
        _log(run, range(3))
    elif kind == "input":
        run.log_input(_dataset("a"))
    elif kind == "artifact":
        run.log_artifact(_file(tmp_path))
    elif kind == "reopen":
        run.reopen()


@pytest.mark.parametrize("kind", ["metrics", "input", "artifact", "reopen", "finish"])
def test_a_run_that_a_restored_server_no_longer_has_is_created_again_and_continues(
    kind: str,
    server: FakeMlflow,
    process: VirtualProcess,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = process.begin(run_name="mine", tags={"a": "b"}, start_time=7)
    run.log_params({"before": 1})
    process.deliver_for(10.0)
    server.runs.clear()
    _log_one_of(kind, run, tmp_path)
    run.log_params({"after": 1})
    run.finish()
    process.deliver_for(6.0)
    found = server.run(run.key)
    assert (found.name, found.tags["a"], found.start_time) == ("mine", "b", 7)
    assert (found.status, found.params) == ("FINISHED", {"after": "1"})
    assert AGAIN_TAG in found.tags
    assert len(found.points) == (3 if kind == "metrics" else 0)
    assert bool(found.inputs) == (kind == "input")
    assert bool(found.artifacts) == (kind == "artifact")
    assert process.sender.waiting == process.sender.outbox.refusals() == 0
    (text,) = said_by_us(caplog)
    assert "no longer has the run" in text


def test_what_was_rejected_with_a_lost_run_is_sent_again_with_its_name_tags_and_parent(
    server: FakeMlflow, process: VirtualProcess, new_process: NewProcess
) -> None:
    parent = process.begin(run_name="parent")
    run = process.begin(run_name="mine", tags={"a": "b"}, start_time=7, parent=parent)
    process.deliver_for(10.0)
    server.on_request = lambda method: server.runs.clear() if method == "log_batch" else None
    for first in (1, 2):  # the server loses the run both times
        _log(run, range(first, first + 1))
        process.deliver_for(10.0)
    run.finish()
    process.deliver_for(6.0)
    assert process.sender.outbox.refusals() >= 3
    process.die()
    server.on_request = lambda method: None
    server.runs.clear()
    after = new_process()
    after.sender.adopt(refused=True)
    after.deliver_for(6.0)
    found = server.run(run.key)
    assert (found.name, found.tags["a"], found.start_time) == ("mine", "b", 7)
    assert (found.curve("m"), found.status) == (_line(range(1, 3)), "FINISHED")
    assert found.tags["mlflow.parentRunId"] == server.run(parent.key).run_id
    assert AGAIN_TAG in found.tags


def test_an_experiment_that_was_created_again_gets_new_runs_and_those_that_continue(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    process.begin().finish()
    goes_on = process.begin()
    process.deliver_for(10.0)
    server.runs.clear()
    server.experiments.clear()
    server.add_experiment("experiment", "77")
    follows = process.begin(parent=goes_on)
    for run in (follows, goes_on):
        _log(run, range(3))
        run.finish()
    process.deliver_for(6.0)
    assert {run.experiment_id for run in server.runs.values()} == {"77"}
    assert server.run(follows.key).tags["mlflow.parentRunId"] == server.run(goes_on.key).run_id
    assert process.sender.outbox.refusals() == 0


def test_a_locked_sqlite_file_is_waited_for_without_a_warning(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = FakeMlflow("sqlite:////tmp/mlflow.db")
    process = VirtualProcess(server, clock)
    locked = MlflowException(
        "(sqlite3.OperationalError) database is locked", TEMPORARILY_UNAVAILABLE
    )
    server.drop("log_batch", locked, times=5)
    run = process.begin()
    _log(run, range(3))
    run.finish()
    process.deliver_for(100.0)
    assert server.run(run.key).status == "FINISHED"
    assert not said_by_us(caplog)
    process.close()


def test_an_sqlite_file_has_one_writer() -> None:
    server = FakeMlflow("sqlite:////tmp/mlflow.db")
    sender = Sender(FakeClient(server), server.uri)
    writing: list[str] = []
    at_once: list[int] = []

    def write(method: str) -> None:
        writing.append(method)
        tick.wait(0.01)  # other threads may write meanwhile
        at_once.append(len(writing))
        writing.remove(method)

    tick = threading.Event()
    server.on_request = write
    for number in range(8):
        _begin(sender, str(number))
    assert sender.flush(20.0)
    assert max(at_once) == 1
    sender.close()


def test_an_outage_is_reported_once_at_its_start_and_once_at_its_end(
    server: FakeMlflow, process: VirtualProcess, caplog: pytest.LogCaptureFixture
) -> None:
    server.is_away = True
    runs = [process.begin() for _ in range(3)]
    for run in runs:
        _log(run, range(10))
        run.finish()
    process.deliver_for(600.0)
    assert process.sender.is_away
    # After a minute of shorter pauses, twice a minute at most.
    assert len(server.calls) <= 26
    (start,) = said_by_us(caplog)
    assert "cannot be written to" in start
    assert "The server is away." in start
    server.is_away = False
    process.deliver_for(90.0)
    assert not process.sender.is_away
    _, end = said_by_us(caplog)
    assert "accepts records again" in end
    assert all(server.run(run.key).curve("m") == _line(range(10)) for run in runs)


def test_points_arrive_once_even_if_the_response_was_lost(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin()
    _log(run, range(10))
    server.lose_answer("log_batch", times=3)
    server.lose_answer("create_run")
    process.deliver_for(90.0)
    assert server.run(run.key).curve("m") == _line(range(10))


def test_the_problem_of_a_run_is_known_until_it_is_solved(
    server: FakeMlflow, process: VirtualProcess, clock: VirtualClock
) -> None:
    server.is_away = True
    process.begin()
    process.deliver_for(6.0)
    (report,) = journal_folder.survey()
    assert report.trouble == "The server is away."
    server.is_away = False
    process.deliver_for(10.0)
    (report,) = journal_folder.survey()
    assert report.trouble is None


# --- dead processes ----------------------------------------------------------------------------


def test_what_a_dead_process_left_behind_is_delivered_automatically_within_a_minute(
    server: FakeMlflow, new_process: NewProcess
) -> None:
    following, dead = new_process(), new_process()
    following.deliver()  # and so looks for dead processes a minute later
    run, finished = dead.begin(), dead.begin()
    _log(run, range(10))
    finished.finish()
    dead.die()
    following.deliver_for(70.0)
    found = server.run(run.key)
    assert (found.curve("m"), found.status) == (_line(range(10)), "FAILED")
    assert found.tags["mlflow_iap.ended"] == "The process that wrote to the run died."
    assert server.run(finished.key).status == "FINISHED"
    assert _files() == []


def test_a_live_process_keeps_its_records(server: FakeMlflow, new_process: NewProcess) -> None:
    living, other = new_process(), new_process()
    run = living.begin()
    _log(run, range(10))
    other.deliver_for(130.0)
    assert server.runs == {}
    assert living.sender.waiting == 11


def test_rejected_records_are_retried_on_request(
    server: FakeMlflow, new_process: NewProcess
) -> None:
    dead = new_process()
    run = dead.begin("id:7")
    _log(run, range(5))
    run.finish()
    dead.deliver()
    dead.die()
    following = new_process()
    following.sender.adopt()
    assert following.sender.waiting == 0
    server.add_experiment("created meanwhile", "7")
    following.sender.adopt(refused=True)
    following.deliver()
    assert server.run(run.key).curve("m") == _line(range(5))
    assert server.run(run.key).status == "FINISHED"
    assert _files() == []


def test_a_run_of_this_process_arrives_even_if_a_dead_child_wrote_to_it(
    server: FakeMlflow, new_process: NewProcess
) -> None:
    parent, child = new_process(), new_process()
    server.is_away = True
    run = parent.begin()
    child.enter()
    handle = RunWriter.__new__(RunWriter)
    handle.__setstate__(run.__getstate__())
    _log(handle, range(10, 20))
    child.die()
    parent.enter()
    _log(run, range(10))
    parent.deliver()  # takes over what the child left, before the run is created
    server.is_away = False
    parent.deliver_for(90.0)
    assert sorted(server.run(run.key).curve("m")) == _line(range(20))


def test_an_error_while_taking_over_journals_does_not_delay_this_process(
    server: FakeMlflow,
    process: VirtualProcess,
    new_process: NewProcess,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(outbox: Outbox, *_: object) -> None:
        raise OSError("broken")

    run = process.begin()
    process.die()
    following = new_process()
    monkeypatch.setattr(Outbox, "end_open_runs", fail)
    other = following.begin()
    other.finish()
    following.deliver()
    assert server.run(other.key).status == "FINISHED"
    assert server.runs_of(run.key) == []
    assert any(
        "could not be taken over. This is tried again later: broken" in text
        for text in said_by_us(caplog)
    )


# --- waiting -----------------------------------------------------------------------------------


def test_flush_delivers_without_waiting_for_more_records(
    server: FakeMlflow, process: VirtualProcess, clock: VirtualClock
) -> None:
    run = process.begin()
    _log(run, range(10))
    began = clock.monotonic()
    assert process.sender.flush(60.0)
    assert clock.monotonic() == began
    assert server.run(run.key).curve("m") == _line(range(10))


def test_flush_gives_up_at_its_timeout(
    server: FakeMlflow, process: VirtualProcess, clock: VirtualClock
) -> None:
    server.is_away = True
    _log(process.begin(), range(10))
    began = clock.monotonic()
    assert not process.sender.flush(20.0)
    assert clock.monotonic() - began == pytest.approx(20.0, abs=0.5)
    server.is_away = False
    assert process.sender.flush(None)


def test_flush_waits_only_for_what_was_appended_before(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin()
    _log(run, range(10))
    marks = process.sender.marks()

    def append(method: str) -> None:
        _log(run, range(len(server.calls), len(server.calls) + 1))

    server.on_request = append  # more is logged with each request
    assert process.sender.flush(60.0, marks)


def test_flush_counts_rejected_records_as_done(process: VirtualProcess) -> None:
    _log(process.begin("id:404"), range(10))
    assert process.sender.flush(60.0)
    assert process.sender.delivered == 0


@pytest.mark.parametrize("client_type", [FakeClient, FakePlainClient])
def test_a_run_of_a_dead_process_that_mlflow_rejects_after_an_outage_does_not_wait_for_ever(
    server: FakeMlflow, new_process: Callable[[], VirtualProcess], client_type: type[FakeClient]
) -> None:
    dead, process = new_process(), new_process()
    _log(dead.begin("id:404"), range(10))
    dead.die()
    process.sender.use(client_type(server))
    server.is_away = True
    process.deliver_for(120.0)
    server.is_away = False
    process.deliver_for(120.0)
    assert process.sender.waiting == 0
    assert (process.sender.delivered, process.sender.refused) == (0, 12)  # the last ends the run


def test_the_run_id_is_waited_for(
    server: FakeMlflow, process: VirtualProcess, clock: VirtualClock
) -> None:
    run = process.begin()
    assert run.run_id() == server.run(run.key).run_id


@pytest.mark.parametrize("timeout", [0.0, 20.0])
def test_the_run_id_is_none_if_it_is_not_known_in_time(
    timeout: float, server: FakeMlflow, process: VirtualProcess
) -> None:
    server.is_away = True
    queued = process.begin()._queued()
    assert process.sender.run_id(queued, timeout) is None


def test_the_run_id_is_none_at_once_if_mlflow_rejects_the_run(
    process: VirtualProcess, clock: VirtualClock
) -> None:
    queued = process.begin("id:404")._queued()
    began = clock.monotonic()
    assert process.sender.run_id(queued, None) is None
    assert clock.monotonic() == began


def test_a_closed_sender_delivers_nothing_and_everything_stays_on_disk(
    server: FakeMlflow, process: VirtualProcess
) -> None:
    run = process.begin()
    _log(run, range(10))
    run.finish()
    process.close()
    assert process.deliver() == 0
    assert not process.sender.flush(10.0, [(Outbox(None, "http://server"), 1)])
    assert server.calls == []
    (report,) = journal_folder.survey()
    assert (report.is_live, report.records()) == (False, 12)


# --- forks -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork with other threads
def test_a_forked_child_leaves_waiting_records_to_its_parent(
    server: FakeMlflow, process: VirtualProcess, clock: VirtualClock
) -> None:
    run = process.begin()
    _log(run, range(3))
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            VirtualProcess(server, clock)
            _log(run, range(3, 8))
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert process.sender.waiting == 4
    _log(run, range(8, 10))
    process.deliver_for(70.0)
    assert sorted(server.run(run.key).curve("m")) == _line(range(10))


def test_no_thread_is_inside_sqlite_while_a_fork_happens(process: VirtualProcess) -> None:
    process.begin()
    outbox = process.sender.outbox
    process.sender.stop_for_fork()
    ended = threading.Event()

    def collect() -> None:
        outbox.collect()
        ended.set()

    thread = threading.Thread(target=collect)
    thread.start()
    assert not ended.wait(0.05)
    process.sender.go_on_after_fork()
    assert ended.wait(10.0)
    thread.join()


# --- threads -----------------------------------------------------------------------------------


@pytest.fixture
def sender(server: FakeMlflow) -> Sender:
    return Sender(FakeClient(server), server.uri)


def _begin(sender: Sender, key: str) -> QueuedRun:
    run = sender.begin(key, "id:0")
    content: dict[str, Any] = {"key": key, "experiment": "id:0", "mode": "new", "time_ms": 1}
    sender.outbox.intake.append(run.number, "start", {**content, "tags": {}, "name": None})
    sender.outbox.intake.append(run.number, "finish", {"status": "FINISHED", "time_ms": 2})
    run.is_ended = True
    return run


def test_threads_deliver_several_runs_at_once_in_the_background(
    server: FakeMlflow, sender: Sender
) -> None:
    at_once = threading.Barrier(8)

    def wait_for_others(method: str) -> None:
        if method == "create_run":
            at_once.wait(20.0)

    server.on_request = wait_for_others
    for number in range(8):
        _begin(sender, str(number))
    assert sender.flush(20.0)
    assert {run.status for run in server.runs.values()} == {"FINISHED"}
    sender.close()


class _ClockOfThreads(VirtualClock):
    """A virtual clock that lets other threads work while one thread waits."""

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        if not condition.wait(0.001):
            self.advance(min(seconds, 0.5))


def test_a_request_that_an_exit_stopped_waiting_for_is_not_sent_again(
    server: FakeMlflow, caplog: pytest.LogCaptureFixture
) -> None:
    clock = _ClockOfThreads()
    answered = threading.Event()

    def leave_unanswered(method: str) -> None:
        answered.wait(30.0)

    server.on_request = leave_unanswered
    sender = Sender(FakeClient(server), server.uri, clock=clock)
    _begin(sender, "a")
    _begin(sender, "b")
    wait_until(lambda: sender.is_away, "the server is found to be unreachable")
    no_limit = closing.Deadline(clock.monotonic, math.inf)
    assert not closing.close([sender], no_limit, end=[], draw=[])
    (silent,) = said_by_us(caplog)
    assert "has not answered for" in silent
    answered.set()
    assert sender.flush(None)
    assert server.calls.count("create_run") == 2
    assert {run.status for run in server.runs.values()} == {"FINISHED"}
    sender.close()


def test_the_threads_of_a_sender_end_when_it_is_closed(server: FakeMlflow, sender: Sender) -> None:
    _begin(sender, "a")
    assert sender.flush(20.0)
    assert sender._threads > 0
    sender.close()
    wait_until(lambda: sender._threads == 0, "the threads have ended")


def _failing_once(method: Callable[..., Any]) -> Callable[..., Any]:
    errors = [AssertionError("a bug")]

    def call(*args: Any) -> Any:
        if errors:
            raise errors.pop()
        return method(*args)

    return call


def test_a_bug_in_this_package_is_logged_and_other_runs_are_delivered(
    server: FakeMlflow,
    sender: Sender,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Schedule, "ended", _failing_once(Schedule.ended))
    _begin(sender, "a")
    wait_until(lambda: bool(said_by_us(caplog)), "the bug is logged")
    _begin(sender, "b")
    wait_until(lambda: bool(server.runs_of("b")), "the other run is delivered")
    assert any("It will be retried" in text for text in said_by_us(caplog))
    sender.close()


def test_an_error_without_a_request_is_retried(
    server: FakeMlflow, process: VirtualProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MlflowCalls, "_send", _failing_once(MlflowCalls._send))
    run = process.begin()
    run.finish()
    process.deliver_for(5.0)
    assert server.run(run.key).status == "FINISHED"


def test_a_silent_server_is_reported_although_each_thread_waits_for_it(
    process: VirtualProcess,
    server: FakeMlflow,
    clock: VirtualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen = []

    def hang(method: str) -> None:
        clock.advance(25.0)
        process.sender.flush(0.0)  # by the thread that closes the callback
        seen.append(process.sender.is_away)

    process.begin().finish()
    server.on_request = hang
    process.sender.deliver_next()
    assert seen[0]
    assert "has not answered for 25 s" in said_by_us(caplog)[0]
