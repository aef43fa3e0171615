"""MLflow has what was appended, after any history of appends, faults, kills and deliveries.

A history is a list of steps that hypothesis chooses, in virtual time and in one thread. At its end
the server is back and everything is delivered: each run exists once, with each point once and in
the order of the appends. The journals keep exactly what MLflow rejected.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import (
    RuleBasedStateMachine,
    rule,
    run_state_machine_as_test,
)
from mlflow.entities import LoggedModelStatus
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fake_mlflow import FakeClient, FakeMlflow, FakePlainClient, FakeRun
from mlflow_iap_callbacks.delivery import asides, mlflow_calls, mlflow_request, provisional_models
from mlflow_iap_callbacks.delivery.mlflow_calls import MlflowCalls
from mlflow_iap_callbacks.delivery.names import mlflow_name
from mlflow_iap_callbacks.delivery.provisional_models import new_provisional_id
from mlflow_iap_callbacks.delivery.refusals import NotYet
from mlflow_iap_callbacks.delivery.run_creation import Mode, RunCreation
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from mlflow_iap_callbacks.delivery.sender import Sender
from mlflow_iap_callbacks.outbox import Outbox, journal_folder
from mlflow_iap_callbacks.outbox import outbox as outbox_module
from mlflow_iap_callbacks.tags import ENDED_TAG, SKIPPED_TAG
from virtual_process import VirtualClock, VirtualProcess

_MEMORY = "/dev/shm"  # many small journals are created, which takes time on a disk
_MAX_PROCESSES = 3
_SECONDS_TO_DELIVER = 900.0  # once there are no more faults
_FAULTY = (
    *("create_run", "create_run", "create_run", "log_batch", "log_batch", "search_runs"),
    *("set_tag", "update_run_info", "get_run"),
    *("create_logged_model", "create_logged_model", "create_logged_model"),
    *("search_logged_models", "_call_endpoint", "_call_endpoint", "_call_endpoint"),
    *("log_artifact", "log_inputs", "delete_run", "get_experiment_by_name", "create_experiment"),
)
_MOST_FORKS = 3  # in a history, because each copies a large process
_PICK = st.integers(0, 20)
_NAMES = st.sampled_from(["a", "b", "odd@1", "odd@2"])
_STATUS = st.sampled_from(["FINISHED", "FAILED", "KILLED"])


class _Killed(BaseException):
    """The process dies in the middle of a request."""


class _Dataset:
    """A data set as ``mlflow.data`` creates it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def to_dict(self) -> dict[str, str]:
        return {"name": self.name, "digest": "1", "source_type": "local", "source": "here"}


@dataclass(eq=False)
class _Stream:
    """What one process appended to a run, in order, and what is expected of it."""

    process: VirtualProcess | None  # None if it did nothing more
    writer: RunWriter
    number: int
    is_owner: bool
    is_ended: bool = False
    is_abandoned: bool = False
    next: _Stream | None = None  # what is appended after the end
    at_exit: str | None = None
    points: list[tuple[str, int, int, float]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)
    models: dict[str, int] = field(default_factory=dict)  # steps by name
    run_names: list[str] = field(default_factory=list)
    skipped: int = 0

    def own(self, name: str) -> str:
        """A name that only this stream uses: streams are sent in any order."""
        return f"{name}.{self.number}"


@dataclass(eq=False)
class _Run:
    """Everything that was appended to a run."""

    key: str
    mode: Mode
    parent: str | None
    is_possible: bool
    streams: list[_Stream] = field(default_factory=list)
    endings: list[str] = field(default_factory=list)


class DeliveryMachine(RuleBasedStateMachine):
    """The steps of a history, and their expected result."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=_MEMORY if os.path.isdir(_MEMORY) else None))
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("MLFLOW_IAP_OUTBOX", str(self.folder / "outbox"))
        # Senders that other tests left running would deliver journals for their own server.
        self.server = FakeMlflow("https://model.example")
        self.clock = VirtualClock()
        self.processes: list[VirtualProcess] = []
        self.runs: dict[str, _Run] = {}
        self.rejected: Counter[tuple[str, str]] = Counter()
        self.number = 0  # numbers of streams, steps and files
        self.forks = 0
        self.caught_up = self.clock.monotonic()
        # Keys and the order of journals are the same when a history is repeated.
        self.random = random.Random(0)
        self.patch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=self.random.getrandbits(128)))

    # --- processes ---

    @rule(is_plain=st.booleans())
    def start_process(self, is_plain: bool) -> None:
        if len(self.processes) < _MAX_PROCESSES:
            self._start_process(is_plain=is_plain)

    @rule(most=st.sampled_from([0, 300, 4_000_000]))
    def change_how_many_records_are_in_no_database(self, most: int) -> None:
        self.patch.setattr(outbox_module, "_MOST_UNSTORED_BYTES", most)

    @rule(pick=_PICK)
    def kill(self, pick: int) -> None:
        self._kill(self._process(pick))

    @rule(pick=_PICK)
    def end_in_order_without_time_to_deliver(self, pick: int) -> None:
        process = self._process(pick)
        self._end_open_runs(process)
        process.close()
        self.processes.remove(process)

    @rule(pick=_PICK, count=st.integers(1, 3))
    def fork_a_child_that_writes_and_dies(self, pick: int, count: int) -> None:
        parent = self._stream(pick)
        if parent.process is None or not self._run_of(parent).is_possible:
            return
        if self.forks == _MOST_FORKS:
            return
        self.forks += 1
        parent.process.enter()
        steps = [self._next() for _ in range(count)]
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                VirtualProcess(self.server, self.clock)
                _append_points(parent.writer, steps)
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        child = self._copy(parent)
        child.process = None
        child.points += _points(steps)

    @rule(pick=_PICK, to=_PICK)
    def send_a_handle_to_another_process(self, pick: int, to: int) -> None:
        stream, process = self._stream(pick), self._process(to)
        run = self._run_of(stream)
        if run.is_possible and all(each.process is not process for each in run.streams):
            process.enter()
            copy = self._copy(stream)
            copy.process, copy.writer = process, pickle.loads(pickle.dumps(stream.writer))

    # --- appends ---

    @rule(pick=_PICK, mode=st.sampled_from(Mode), is_new=st.booleans(), has_parent=st.booleans())
    def begin_run(self, pick: int, mode: Mode, is_new: bool, has_parent: bool) -> None:
        process = self._process(pick)
        known = None if is_new or mode is Mode.NEW else self._known_run(process, mode, pick)
        if known is not None:
            key, not_before = known.key, 0.0
            # As in practice, another process first gets time to create the run.
            self.server.catch_up()
            if mode is Mode.LOGGED:
                not_before = self.clock.time() + 20.0
            parent = None
        else:
            key, not_before = f"{mode.value}-{self._next()}", 0.0
            parent = self._parent_of(process) if has_parent and mode is Mode.NEW else None
        writer = process.begin(
            key=None if mode is Mode.NEW else key,
            mode=mode,
            not_before=not_before,
            parent=None if parent is None else parent.writer,
            start_time=1000 + self.number,
        )
        run = self.runs.setdefault(
            writer.key,
            _Run(writer.key, mode, parent.writer.key if parent else None, is_possible=True),
        )
        run.streams.append(_Stream(process, writer, self._next(), is_owner=True))

    @rule(pick=_PICK)
    def begin_a_run_that_mlflow_rejects(self, pick: int) -> None:
        process = self._process(pick)
        writer = process.begin("id:404")
        run = self.runs[writer.key] = _Run(writer.key, Mode.NEW, None, is_possible=False)
        run.streams.append(_Stream(process, writer, self._next(), is_owner=True))
        self.rejected["start", "404"] += 1

    @rule(pick=_PICK, count=st.integers(1, 5))
    def log_metrics(self, pick: int, count: int) -> None:
        stream, steps = self._open_stream(pick), [self._next() for _ in range(count)]
        _append_points(stream.writer, steps)
        stream.points += _points(steps)
        for _ in steps:
            self._is_rejected(stream, "metrics")

    @rule(pick=_PICK, value=st.sampled_from([None, math.nan]))
    def log_a_value_that_is_no_number(self, pick: int, value: float | None) -> None:
        stream, step = self._open_stream(pick), self._next()
        stream.writer.log_metrics({"m": value, "n": 0.5}, step=step, timestamp=step)  # type: ignore[dict-item]
        stream.points.append(("n", step, step, 0.5))
        # What is no number is skipped when it is logged, and NaN when it is sent.
        if not self._is_rejected(stream, "metrics") and value is not None:
            stream.skipped += 1

    @rule(pick=_PICK, count=st.integers(1, 3))
    def log_curve(self, pick: int, count: int) -> None:
        stream, first = self._open_stream(pick), self._next()
        points = [(first + i, i / 2) for i in range(count)]
        self.number += count
        stream.writer.log_curve("curve@", points, timestamp=first)
        stream.points += [(mlflow_name("curve@"), step, first, value) for step, value in points]
        self._is_rejected(stream, "curve")

    @rule(
        pick=_PICK,
        name=_NAMES,
        values=st.lists(st.sampled_from(["1", "2"]), min_size=1, max_size=3),
        is_suggestion=st.booleans(),
    )
    def log_param(self, pick: int, name: str, values: list[str], is_suggestion: bool) -> None:
        stream = self._open_stream(pick)
        name = stream.own(f"suggested {name}" if is_suggestion else name)
        for value in values:
            # The values that training used come first, and the suggested values afterwards.
            if is_suggestion and mlflow_name(name) in stream.params:
                stream.writer.log_suggestions({name: value})
                self._expect_param(stream, f"suggested.{name}", value, instead_of=name)
            else:
                stream.writer.log_params({name: value})
                self._expect_param(stream, name, value)

    @rule(pick=_PICK, name=_NAMES, value=st.integers(1, 2))
    def set_tags(self, pick: int, name: str, value: int) -> None:
        stream = self._open_stream(pick)
        stream.writer.set_tags({stream.own(name): value})
        stream.tags[mlflow_name(stream.own(name))] = str(value)
        self._is_rejected(stream, "tags")

    @rule(pick=_PICK)
    def log_artifact(self, pick: int) -> None:
        stream, name = self._open_stream(pick), f"{self._next()}.txt"
        stream.writer.log_text(name, name)
        stream.artifacts[name] = name.encode()
        self._is_rejected(stream, "artifact")

    @rule(pick=_PICK)
    def log_input(self, pick: int) -> None:
        stream, name = self._open_stream(pick), f"data {self._next()}"
        stream.writer.log_input(_Dataset(name))  # type: ignore[arg-type]
        stream.inputs.add(name)
        self._is_rejected(stream, "input")

    # What MLflow's own API logs in the background:

    @rule(pick=_PICK, count=st.integers(1, 5))
    def log_points(self, pick: int, count: int) -> None:
        stream, steps = self._open_stream(pick), [self._next() for _ in range(count)]
        points = [("p", step, step, step / 4) for step in steps]
        stream.writer._append("points", [[name, v, time, step] for name, step, time, v in points])
        stream.points += points
        self._is_rejected(stream, "points")

    @rule(pick=_PICK, status=st.none() | _STATUS, has_name=st.booleans())
    def update(self, pick: int, status: str | None, has_name: bool) -> None:
        stream, name = self._open_stream(pick), f"run {self._next()}" if has_name else None
        if stream.is_owner:  # it ends the run itself
            status = None
        stream.writer._append("update", {"status": status, "end_time": 6000, "name": name})
        stream.run_names += [name] if name is not None else []
        self._run_of(stream).endings += [status] if status is not None else []
        self._is_rejected(stream, "update")

    @rule(pick=_PICK)
    def log_model(self, pick: int) -> None:
        stream, step = self._open_stream(pick), self._next()
        key, name = new_provisional_id(), f"model {step}"
        given: dict[str, Any] = {
            "name": name,
            "experiment_id": "1",
            "tags": {},
            "params": {},
            "model_type": None,
        }
        stream.writer._append("model_start", {"key": key, "has_run_params": True, **given})
        stream.writer._append("points", [["p", 0.5, step, step, key, None, None]])
        finalize = {"model_id": key, "status": "LOGGED_MODEL_READY"}
        stream.writer._append(
            "request",
            {"api": "FinalizeLoggedModel", "body": json.dumps(finalize), "endpoint": f"/{key}"},
        )
        for kind in ("model_start", "points", "request"):
            self._is_rejected(stream, kind)
        stream.points.append(("p", step, step, 0.5))
        stream.models[name] = step

    @rule(pick=_PICK, status=_STATUS)
    def finish(self, pick: int, status: str) -> None:
        stream = self._open_stream(pick)
        stream.writer.finish(status, end_time=5000)
        self._end(stream, status, "finish")

    @rule(pick=_PICK, status=_STATUS)
    def say_how_to_end_at_exit(self, pick: int, status: str) -> None:
        stream = self._stream(pick)
        if stream.is_owner and not stream.is_ended:
            stream.writer.finish_at_exit(status)
            stream.at_exit = status

    # --- deliveries, time and trouble ---

    @rule(pick=_PICK, turns=st.integers(1, 6), seconds=st.sampled_from([0.0, 6.0, 40.0]))
    def deliver(self, pick: int, turns: int, seconds: float) -> None:
        process = self._process(pick)
        self._pass_time(seconds)
        process.enter()
        try:
            for _ in range(turns):
                process.sender.deliver_next()
        except _Killed:
            self._kill(process)

    @rule(seconds=st.sampled_from([0.3, 2.5, 8.0, 40.0, 90.0]))
    def let_time_pass(self, seconds: float) -> None:
        self._pass_time(seconds)

    @rule(seconds=st.sampled_from([-7200.0, -3.0, 3.0, 7200.0]))
    def let_the_wall_clock_jump(self, seconds: float) -> None:
        self.server.catch_up()
        self.clock.jump(seconds)

    @rule(
        method=st.sampled_from(_FAULTY),
        kind=st.sampled_from(
            ["lose_answer", "drop", "drop", "delay", "delay", "kill", "kill before"]
        ),
    )
    def let_a_request_fail(self, method: str, kind: str) -> None:
        if kind == "delay":
            self.server.delay("create_run")
        elif kind.startswith("kill"):
            fail = self.server.drop if kind == "kill before" else self.server.lose_answer
            fail(method, _Killed())
        else:
            getattr(self.server, kind)(method)

    @rule()
    def begin_or_end_an_outage(self) -> None:
        self.server.is_away = not self.server.is_away

    # --- the end of a history ---

    def teardown(self) -> None:
        try:
            self._deliver_everything()
            self._check()
        finally:
            for process in self.processes:
                process.close()
            self.patch.undo()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _deliver_everything(self) -> None:
        self.server.clear_faults()
        self.server.catch_up()
        for process in self.processes:
            self._end_open_runs(process)
        self._start_process(is_plain=False)
        ends = self.clock.monotonic() + _SECONDS_TO_DELIVER
        # A dead process's run may be open though none of its records wait.
        while any(journal.waiting or journal.runs for journal in journal_folder.survey()):
            assert self.clock.monotonic() < ends, f"still waiting: {journal_folder.survey()}"
            for process in self.processes:
                process.enter()
                process.deliver()
            self.clock.advance(5.0)
        for process in self.processes:
            process.close()
        self.processes.clear()

    def _check(self) -> None:
        for run in self.runs.values():
            runs = self.server.runs_of(run.key)
            assert len(runs) == run.is_possible, f"{run.key} is there {len(runs)} times"
            if runs:
                self._check_run(run, runs[0])
        assert len([run for run in self.server.runs.values() if not run.is_deleted]) == sum(
            run.is_possible for run in self.runs.values()
        )
        found = _rejected_on_disk()
        assert found == self.rejected, (found - self.rejected, self.rejected - found)

    def _check_run(self, run: _Run, found: FakeRun) -> None:
        for stream in run.streams:
            wanted = set(stream.points)
            arrived = [point for point in found.points if point in wanted]
            assert arrived == stream.points, f"points of stream {stream.number} of {run.key}"
        assert len(found.points) == sum(len(stream.points) for stream in run.streams)
        assert found.params == _joined(stream.params for stream in run.streams)
        tags = _joined(stream.tags for stream in run.streams)
        assert {name: found.tags.get(name) for name in tags} == tags
        assert found.artifacts == _joined(stream.artifacts for stream in run.streams)
        names = set().union(*(stream.inputs for stream in run.streams))
        assert {name for name, _ in found.inputs} == names
        self._check_models(found, _joined(stream.models for stream in run.streams))
        run_names = [name for stream in run.streams for name in stream.run_names]
        assert not run_names or found.name in run_names
        skipped = sum(stream.skipped for stream in run.streams)
        assert (SKIPPED_TAG in found.tags) == bool(skipped)
        if run.parent is not None:
            parent = self.server.run(run.parent)
            assert found.tags[MLFLOW_PARENT_RUN_ID] == parent.run_id
        assert found.status in run.endings
        if len(run.streams) == 1:
            (stream,) = run.streams
            assert not run_names or found.name == run_names[-1]
            assert found.tags.get(SKIPPED_TAG, "0") == str(skipped)
            assert found.status == run.endings[-1]
            assert (ENDED_TAG in found.tags) == stream.is_abandoned

    def _check_models(self, run: FakeRun, steps: dict[str, int]) -> None:
        models = self.server.models.values()
        found = [model for model in models if model.source_run_id == run.run_id]
        assert sorted(str(model.name) for model in found) == sorted(steps)
        for model in found:
            assert model.status == LoggedModelStatus.READY
            points = self.server.model_metrics[model.model_id]
            assert {point.step for point in points} == {steps[str(model.name)]}

    # --- helpers ---

    def _next(self) -> int:
        self.number += 1
        return self.number

    def _pass_time(self, seconds: float) -> None:
        """Advance the clock. Like a server, MLflow executes each request within half a minute."""
        self.clock.advance(seconds)
        if self.clock.monotonic() - self.caught_up > 20.0:
            self.caught_up = self.clock.monotonic()
            self.server.catch_up()

    def _start_process(self, *, is_plain: bool) -> None:
        client_type = FakePlainClient if is_plain else FakeClient
        self.processes.append(VirtualProcess(self.server, self.clock, client_type))

    def _process(self, pick: int) -> VirtualProcess:
        if not self.processes:
            self._start_process(is_plain=False)
        return self.processes[pick % len(self.processes)]

    def _streams(self) -> list[_Stream]:
        """The streams of live processes that can be appended to."""
        return [
            stream
            for run in self.runs.values()
            for stream in run.streams
            if stream.process in self.processes and (run.is_possible or not stream.is_ended)
        ]

    def _stream(self, pick: int) -> _Stream:
        if not self._streams():
            self.begin_run(pick, Mode.NEW, is_new=True, has_parent=False)
        streams = self._streams()
        return streams[-1 - pick % len(streams)]

    def _open_stream(self, pick: int) -> _Stream:
        """A stream to append to. Records after its end belong to another stream."""
        stream = self._stream(pick)
        assert stream.process is not None
        stream.process.enter()
        while stream.is_ended:
            stream.next = stream.next or self._copy(stream)
            stream = stream.next
        return stream

    def _copy(self, stream: _Stream) -> _Stream:
        copy = _Stream(stream.process, stream.writer, self._next(), is_owner=False)
        self._run_of(stream).streams.append(copy)
        return copy

    def _run_of(self, stream: _Stream) -> _Run:
        return self.runs[stream.writer.key]

    def _known_run(self, process: VirtualProcess, mode: Mode, pick: int) -> _Run | None:
        """A run that the process may also start, in this mode."""
        modes = {Mode.LOGGED: (Mode.CLAIMED, Mode.LOGGED), Mode.CLAIMED: ()}.get(mode, (mode,))
        at_work = self.processes if mode is Mode.RESUMED else [process]
        runs = [
            run
            for run in self.runs.values()
            if run.mode in modes and all(each.process not in at_work for each in run.streams)
        ]
        return runs[pick % len(runs)] if runs else None

    def _parent_of(self, process: VirtualProcess) -> _Stream | None:
        modes = (Mode.RESUMED, Mode.SHARED)
        return next(
            (
                stream
                for stream in self._streams()
                if stream.process is process
                and stream.is_owner
                and self._run_of(stream).mode in modes
            ),
            None,
        )

    def _expect_param(
        self, stream: _Stream, name: str, value: str, instead_of: str | None = None
    ) -> None:
        if self._is_rejected(stream, "params" if instead_of is None else "suggestions"):
            return
        taken = mlflow_name(name)
        if instead_of is not None and stream.params[mlflow_name(instead_of)] == value:
            return
        if stream.params.setdefault(taken, value) != value:
            # If a request contains the same param twice, it is sent only once.
            self.rejected["params", repr({taken: value})] = 1

    def _is_rejected(self, stream: _Stream, kind: str) -> bool:
        """Whether a record is rejected because its run is; if so, expect it among the refusals."""
        is_possible = self._run_of(stream).is_possible
        if not is_possible:
            self.rejected[kind, "404"] += 1
        return not is_possible

    def _end(self, stream: _Stream, status: str, kind: str) -> None:
        self.server.catch_up()  # a duplicate created after the end is not deleted
        self._run_of(stream).endings.append(status)
        self._is_rejected(stream, kind)
        stream.is_ended, stream.is_abandoned = True, kind == "abandon"

    def _end_open_runs(self, process: VirtualProcess) -> None:
        process.enter()
        process.sender.end_open_runs()
        for stream in self._streams():
            if stream.process is process and stream.is_owner and not stream.is_ended:
                kind = "abandon" if stream.at_exit is None else "finish"
                self._end(stream, stream.at_exit or "FAILED", kind)

    def _kill(self, process: VirtualProcess) -> None:
        for stream in self._streams():
            if stream.process is process and stream.is_owner and not stream.is_ended:
                self._end(stream, "FAILED", "abandon")
        process.die()
        self.processes.remove(process)


def _points(steps: list[int]) -> list[tuple[str, int, int, float]]:
    return [("m", step, step, step / 2) for step in steps]


def _append_points(writer: RunWriter, steps: list[int]) -> None:
    for name, step, timestamp, value in _points(steps):
        writer.log_metrics({name: value}, step=step, timestamp=timestamp)


def _joined(parts: Iterator[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}


def _rejected_on_disk() -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for path in journal_folder.journals():
        outbox = Outbox(path)
        for kind, content, reason in outbox.refused():
            what = "404" if "id=404" in reason else repr(content)
            found[kind, what] += 1
            if kind == "params" and what != "404":
                found[kind, what] = 1
        outbox.close()
    return found


# --- the tests ---------------------------------------------------------------------------------


def _settings(max_examples: int, **given: Any) -> settings:
    return settings(
        max_examples=max_examples,
        stateful_step_count=40,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **given,
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork with other threads
def test_mlflow_holds_what_was_appended_no_matter_what_happens() -> None:
    histories = settings().max_examples // 4  # more histories in `make test-all`
    run_state_machine_as_test(DeliveryMachine, settings=_settings(histories, derandomize=True))


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_holds_what_was_appended_in_many_histories() -> None:
    run_state_machine_as_test(DeliveryMachine, settings=_settings(5000))


def _settle_before_sending(patch: pytest.MonkeyPatch) -> None:
    def send(sender: Sender, turn: Any, records: Any) -> None:
        turn.run.outbox.settle(turn.run, records[:1])
        sender._calls.send(turn.run, records[:1])

    patch.setattr(Sender, "_send", send)


def _create_again_without_a_look(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RunCreation, "_look", lambda *_: None)
    patch.setattr(RunCreation, "_wait_for_earlier_try", lambda *_: None)


def _let_a_rejection_stop_its_run(patch: pytest.MonkeyPatch) -> None:
    def log_halves(*given: Any) -> None:
        raise NotYet(str(given[-1]))

    patch.setattr(MlflowCalls, "_log_halves", log_halves)


def _create_a_model_again_without_a_look(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(provisional_models, "find_model", lambda *_: None)


def _drop_a_request_that_fails(patch: pytest.MonkeyPatch) -> None:
    def send_request(*given: Any, **named: Any) -> None:
        with suppress(Exception):
            mlflow_request.send_request(*given, **named)

    patch.setattr(mlflow_calls, "send_request", send_request)


def _let_points_overtake_a_model(patch: pytest.MonkeyPatch) -> None:
    kinds = ("start", "reopen", "update", "finish", "abandon")
    patch.setattr(asides, "_KEPT_IN_ORDER", kinds)
    patch.setattr(provisional_models, "_SECONDS_TO_APPEAR", 0.0)  # else they wait for the model


def _deliver_a_model(method: str, kind: str) -> None:
    history = DeliveryMachine()
    history.begin_run(0, Mode.NEW, is_new=True, has_parent=False)
    history.deliver(0, 3, 0.0)
    for _ in range(2):
        history.let_a_request_fail(method, kind)
    history.log_model(0)
    history.deliver(0, 6, 6.0)
    history.deliver(0, 6, 40.0)
    history.teardown()


@pytest.mark.parametrize(
    ("plant", "method", "kind"),
    [
        (_create_a_model_again_without_a_look, "create_logged_model", "lose_answer"),
        (_drop_a_request_that_fails, "_call_endpoint", "drop"),
        (_let_points_overtake_a_model, "create_logged_model", "drop"),
    ],
)
def test_one_history_is_enough_to_find_a_planted_bug_in_the_delivery_of_a_model(
    plant: Callable[[pytest.MonkeyPatch], None],
    method: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _deliver_a_model(method, kind)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        _deliver_a_model(method, kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    "plant",
    [
        *(_settle_before_sending, _create_again_without_a_look, _let_a_rejection_stop_its_run),
        _create_a_model_again_without_a_look,
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_model_finds_a_planted_bug(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    # Journals are taken over in the order of process ids. These differ when a history with forks is
    # repeated, so its error may not be found again.
    with pytest.raises((AssertionError, Flaky)):
        run_state_machine_as_test(
            DeliveryMachine,
            settings=_settings(
                1000, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False
            ),
        )
