"""A run is created once in MLflow, even if other processes create it too or responses are lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from fake_mlflow import FakeClient, FakeMlflow, FakePlainClient, FakeRun
from mlflow_iap_callbacks import IAPUnavailableError, IAPUnknownOutcomeError
from mlflow_iap_callbacks.delivery.refusals import NotYet
from mlflow_iap_callbacks.delivery.run_creation import CLAIM_SECONDS, Mode, RunCreation
from mlflow_iap_callbacks.outbox import Outbox, QueuedRun
from mlflow_iap_callbacks.tags import AGAIN_TAG
from virtual_process import VirtualClock

_KEY = "the key"
_LOOK = "search_runs"


class _Process:
    """One process that creates runs in experiment 0."""

    def __init__(self, server: FakeMlflow, clock: VirtualClock, client_type: Any) -> None:
        self.creation = RunCreation(client_type(server), clock)
        self.outbox = Outbox(None, server.uri)
        self._clock = clock

    def run(self, key: str = _KEY, experiment: str = "id:0", **given: Any) -> QueuedRun:
        return self.outbox.begin(key, experiment, **given)

    def content(self, mode: Mode, **given: Any) -> dict[str, Any]:
        content: dict[str, Any] = {"mode": mode.value, "time_ms": 7, "tags": {}, "name": "name"}
        return {**content, "logged_at": self._clock.time(), "not_before": 0.0, **given}

    def begin(self, run: QueuedRun, mode: Mode, **given: Any) -> None:
        """Append the run's start to the outbox."""
        content = {"key": run.key, "experiment": run.experiment, **self.content(mode, **given)}
        self.outbox.intake.append(run.number, "start", content)
        self.outbox.collect()

    def started(self, mode: Mode, run: QueuedRun | None = None, **given: Any) -> QueuedRun:
        """Begin a run and create it."""
        run = run or self.run()
        self.begin(run, mode, **given)
        return self.start(mode, run, **given)

    def start(self, mode: Mode, run: QueuedRun | None = None, **given: Any) -> QueuedRun:
        run = run or self.run()
        self.creation.start(run, self.content(mode, **given))
        return run


NewProcess = Callable[..., _Process]


@pytest.fixture
def new_process(server: FakeMlflow, clock: VirtualClock) -> NewProcess:
    return lambda client_type=FakeClient: _Process(server, clock, client_type)


@pytest.fixture
def process(new_process: NewProcess) -> _Process:
    return new_process()


def _wait(clock: VirtualClock, error: pytest.ExceptionInfo[NotYet]) -> float:
    """Wait as long as the error asks for; return how long."""
    assert error.value.after is not None
    clock.advance(error.value.after)
    return error.value.after


def _made(server: FakeMlflow, **tags: str) -> FakeRun:
    """A run with this key that another process created."""
    run = FakeClient(server).create_run("0", 1, {"mlflow_iap.run_key": _KEY, **tags})
    server.calls.clear()
    return server.runs[run.info.run_id]


# --- who else may have created it --------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.NEW, Mode.CLAIMED])
def test_a_run_that_nobody_else_can_have_created_is_not_looked_up(
    mode: Mode, server: FakeMlflow, process: _Process
) -> None:
    run = process.start(mode, tags={"a": "b"})
    assert server.calls == ["create_run"]
    found = server.run(_KEY)
    assert (run.run_id, found.name, found.start_time) == (found.run_id, "name", 7)
    assert found.tags["a"] == "b"


@pytest.mark.parametrize("mode", [Mode.LOGGED, Mode.RESUMED, Mode.SHARED])
def test_a_run_that_others_may_have_created_is_looked_up_first(
    mode: Mode, server: FakeMlflow, process: _Process
) -> None:
    found = _made(server, **{"_mlflow_iap.agreed": "true"})
    assert process.start(mode).run_id == found.run_id
    assert server.calls[0] == _LOOK
    assert "create_run" not in server.calls


@pytest.mark.parametrize(
    ("shift", "is_found"), [(0, True), (-1, True), (9 * 3_600_000 + 1, True), (5, False)]
)
def test_a_run_is_found_by_its_former_key_if_it_began_at_the_same_time_in_any_time_zone(
    server: FakeMlflow, process: _Process, shift: int, is_found: bool
) -> None:
    former = process.started(Mode.NEW, process.run("former"), time_ms=1_000)
    run = process.started(Mode.LOGGED, former_key="former", time_ms=1_000 + shift)
    assert (run.run_id == former.run_id) is is_found
    assert len(server.runs) == (1 if is_found else 2)


@pytest.mark.parametrize(
    ("key", "start", "is_found"),
    [("s-1-2a", 7, True), ("s-10-2a", 7, False), ("s-1-2a", 70, False)],
)
def test_the_run_of_a_trial_in_a_journal_of_version_0_1_0_is_found_by_its_current_key(
    server: FakeMlflow, process: _Process, key: str, start: int, is_found: bool
) -> None:
    today = process.started(Mode.NEW, process.run(key), time_ms=start)
    process.outbox.is_adopted = True
    run = process.run("s-1")
    tags = {"mlflow_iap.study": "s", "mlflow_iap.trial": "1"}
    process.started(Mode.CLAIMED, run, tags=tags)
    assert (run.run_id == today.run_id) is is_found
    assert len(server.runs) == (1 if is_found else 2)


def test_a_run_with_its_own_key_takes_precedence_over_one_with_the_former_key(
    server: FakeMlflow, process: _Process, new_process: NewProcess
) -> None:
    own = process.started(Mode.NEW)
    process.started(Mode.NEW, process.run("former"))
    run = new_process().started(Mode.LOGGED, former_key="former")
    assert run.run_id == own.run_id


@pytest.mark.parametrize("seconds", [CLAIM_SECONDS + 0.1, -60.0])
def test_the_run_of_a_late_or_future_claim_is_looked_up_first(
    seconds: float, server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    found = _made(server)
    run, content = process.run(), process.content(Mode.CLAIMED, tags={"more": "1"})
    clock.jump(seconds)
    process.creation.start(run, content)
    assert (run.run_id, found.tags["more"]) == (found.run_id, "1")


def test_a_run_that_others_created_gets_the_missing_tags(
    server: FakeMlflow, process: _Process
) -> None:
    found = _made(server)
    process.start(Mode.LOGGED, tags={f"tag {n}": "1" for n in range(250)})
    assert server.calls.count("log_batch") == 3
    assert all(found.tags[f"tag {n}"] == "1" for n in range(250))


def test_a_shared_run_gets_only_the_tags_that_it_lacks(
    server: FakeMlflow, process: _Process
) -> None:
    found = _made(server, **{"_mlflow_iap.agreed": "true", "edited": "by its user"})
    process.start(Mode.SHARED, tags={"edited": "1", "more": "1"})
    assert (found.tags["edited"], found.tags["more"]) == ("by its user", "1")
    server.calls.clear()
    process.start(Mode.SHARED, tags={"edited": "1", "more": "1"})
    assert "log_batch" not in server.calls


def test_a_run_waits_for_the_process_that_may_create_it(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    run, content = process.run(), process.content(Mode.LOGGED, not_before=clock.time() + 20.0)
    with pytest.raises(NotYet) as error:
        process.creation.start(run, content)
    assert server.calls == []
    assert _wait(clock, error) == 20.0
    process.creation.start(run, content)
    assert server.run(_KEY).run_id == run.run_id


def test_a_time_in_the_future_delays_a_run_by_at_most_twenty_seconds(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    content = process.content(Mode.LOGGED, not_before=clock.time() + 3600.0)
    run = process.run()
    with pytest.raises(NotYet) as error:
        process.creation.start(run, content)
    assert _wait(clock, error) == pytest.approx(20.0)
    process.creation.start(run, content)
    assert run.run_id == server.run(_KEY).run_id


def test_a_clock_that_was_set_back_delays_no_run(process: _Process, clock: VirtualClock) -> None:
    run, content = process.run(), process.content(Mode.LOGGED, not_before=clock.time() + 20.0)
    clock.jump(-7200.0)
    process.creation.start(run, content)
    assert run.run_id is not None


def test_a_resumed_run_belongs_to_this_journal(server: FakeMlflow, process: _Process) -> None:
    found = _made(server, **{"mlflow_iap.ended": "why", "_mlflow_iap.journal": "another"})
    found.status = "FAILED"
    process.start(Mode.RESUMED)
    assert found.status == "RUNNING"
    assert found.tags["_mlflow_iap.journal"] == process.outbox.name
    assert "mlflow_iap.ended" not in found.tags


def test_a_run_that_a_dead_process_resumed_is_not_reopened(
    server: FakeMlflow, process: _Process
) -> None:
    found = _made(server, **{"_mlflow_iap.journal": "another"})
    found.status = "FINISHED"
    process.outbox.is_adopted = True
    process.start(Mode.RESUMED)
    assert (found.status, found.tags["_mlflow_iap.journal"]) == ("FINISHED", "another")


def test_a_run_that_a_dead_process_began_is_looked_up_first(
    server: FakeMlflow, process: _Process
) -> None:
    found = _made(server)
    process.outbox.is_adopted = True
    assert process.start(Mode.NEW).run_id == found.run_id


def test_a_run_whose_start_was_lost_is_still_created(server: FakeMlflow, process: _Process) -> None:
    run = process.run()
    assert process.creation.known(run) == server.run(_KEY).run_id


def test_a_run_of_another_process_is_waited_for(server: FakeMlflow, process: _Process) -> None:
    run = process.run(is_owned=False)
    with pytest.raises(NotYet, match="which another process is to create, does not exist yet"):
        process.creation.known(run)
    found = _made(server)
    assert process.creation.known(run) == found.run_id == run.run_id
    server.calls.clear()
    process.creation.known(run)
    assert server.calls == []


def test_a_run_that_this_process_created_is_known_when_it_is_logged_again(
    server: FakeMlflow, process: _Process
) -> None:
    first, second = process.start(Mode.CLAIMED), process.start(Mode.CLAIMED)
    assert first.run_id == second.run_id
    assert server.calls == ["create_run"]


def test_a_run_that_is_logged_again_gets_the_tags_of_both(
    server: FakeMlflow, process: _Process
) -> None:
    process.start(Mode.CLAIMED, tags={"first": "1"})
    process.start(Mode.CLAIMED, tags={"second": "2"})
    tags = server.run(_KEY).tags
    assert (tags["first"], tags["second"]) == ("1", "2")


def test_two_queued_runs_with_the_same_key_do_not_create_it_at_the_same_time(
    server: FakeMlflow, process: _Process
) -> None:
    errors: list[NotYet] = []

    def start_another(method: str) -> None:
        if method == "create_run":
            with pytest.raises(NotYet, match="being created") as error:
                process.start(Mode.RESUMED)
            errors.append(error.value)

    server.on_request = start_another
    process.start(Mode.RESUMED)
    assert [error.after for error in errors] == [0.5]
    process.start(Mode.RESUMED)
    assert len(server.runs) == 1


# --- shared runs -------------------------------------------------------------------------------


def _agree(process: _Process, run: QueuedRun, clock: VirtualClock) -> None:
    with pytest.raises(NotYet, match="at the same time") as error:
        process.start(Mode.SHARED, run)
    assert _wait(clock, error) == 2.0
    process.start(Mode.SHARED, run)


def _agreed_run(process: _Process, clock: VirtualClock) -> QueuedRun:
    """A shared run that the process has created and agreed on."""
    run = process.run()
    process.begin(run, Mode.SHARED)
    _agree(process, run, clock)
    return run


def test_a_shared_run_is_agreed_on_after_its_creators_had_time_to_see_each_other(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    run = process.run()
    _agree(process, run, clock)
    assert run.run_id == server.run(_KEY).run_id
    assert server.run(_KEY).tags["_mlflow_iap.agreed"] == "true"


def test_creators_of_two_runs_agree_on_the_one_with_the_lowest_id(
    server: FakeMlflow, new_process: NewProcess, clock: VirtualClock
) -> None:
    makers = [new_process() for _ in range(3)]
    runs = [maker.run() for maker in makers]
    # The server does not show the creators each other's runs.
    real, hidden = FakeClient.search_runs, {"is": True}

    class _Blind(FakeClient):
        def search_runs(self, *args: Any, **given: Any) -> Any:
            found = real(self, *args, **given)
            return type(found)([], None) if hidden["is"] else found

    for maker, run in zip(makers, runs, strict=True):
        maker.creation.client = _Blind(server)
        with pytest.raises(NotYet):
            maker.start(Mode.SHARED, run)
    hidden["is"] = False
    assert len(server.runs_of(_KEY)) == 3
    lowest = min(found.run_id for found in server.runs_of(_KEY))
    clock.advance(2.0)
    for maker, run in zip(makers, runs, strict=True):
        maker.start(Mode.SHARED, run)
    assert {run.run_id for run in runs} == {lowest} == {server.run(_KEY).run_id}


def test_processes_agree_on_the_run_of_the_process_that_executed_the_trial(
    server: FakeMlflow, new_process: NewProcess, clock: VirtualClock
) -> None:
    executor, other = new_process(), new_process()
    claimed, shared = executor.run(), other.run()
    with pytest.raises(NotYet, match="at the same time") as error:
        other.start(Mode.SHARED, shared)
    executor.start(Mode.CLAIMED, claimed, tags={"a": "b"})
    assert len(server.runs_of(_KEY)) == 2
    _wait(clock, error)
    other.start(Mode.SHARED, shared)
    assert shared.run_id == claimed.run_id == server.run(_KEY).run_id
    assert server.run(_KEY).tags["a"] == "b"


def test_the_agreed_run_takes_precedence_over_a_late_one(
    server: FakeMlflow, process: _Process
) -> None:
    _made(server)
    agreed = _made(server, **{"_mlflow_iap.agreed": "true"})
    assert process.start(Mode.LOGGED).run_id == agreed.run_id


def test_a_process_whose_run_another_one_deleted_uses_the_agreed_run(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    run = _agreed_run(process, clock)
    server.run(_KEY).is_deleted = True
    assert not process.creation.take_agreed(run)
    agreed = _made(server, **{"_mlflow_iap.agreed": "true"})
    assert process.creation.take_agreed(run)
    assert run.run_id == agreed.run_id
    child = process.start(Mode.NEW, process.outbox.begin("child", "id:0"), parent=_KEY)
    assert _parent_of(server, child) == agreed.run_id


def test_a_run_is_restored_if_processes_agreed_on_two_and_deleted_both(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    run = _agreed_run(process, clock)
    both = [server.run(_KEY), _made(server, **{"_mlflow_iap.agreed": "true"})]
    for each in both:
        each.is_deleted = True
    assert process.creation.take_agreed(run)
    assert run.run_id == server.run(_KEY).run_id == min(each.run_id for each in both)


def test_a_run_that_its_user_deleted_stays_deleted(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    run = _agreed_run(process, clock)
    server.run(_KEY).is_deleted = True
    _made(server).is_deleted = True
    assert not process.creation.take_agreed(run)


def test_a_run_that_is_not_shared_stays_deleted(server: FakeMlflow, process: _Process) -> None:
    run = process.started(Mode.RESUMED)
    server.run(_KEY).is_deleted = True
    _made(server, **{"_mlflow_iap.agreed": "true"})
    assert not process.creation.take_agreed(run)


def test_a_rejected_run_of_another_journal_takes_no_parent_away(
    server: FakeMlflow, new_process: NewProcess, clock: VirtualClock
) -> None:
    process, dead = new_process(), new_process()
    run = process.run()
    _agree(process, run, clock)
    others = dead.run()
    others.run_id = "deleted"
    process.creation.refuse(others)
    child = process.start(Mode.NEW, process.outbox.begin("child", "id:0"), parent=_KEY)
    assert _parent_of(server, child) == run.run_id


def test_the_child_of_a_rejected_run_gets_the_run_of_another_process_as_its_parent(
    server: FakeMlflow, new_process: NewProcess, clock: VirtualClock
) -> None:
    process, dead = new_process(), new_process()
    run = process.run()
    with pytest.raises(NotYet, match="at the same time") as error:
        process.start(Mode.SHARED, run)
    process.creation.refuse(dead.run())
    with pytest.raises(NotYet, match="parent"):
        process.start(Mode.NEW, process.outbox.begin("child", "id:0"), parent=_KEY)
    _wait(clock, error)
    process.start(Mode.SHARED, run)
    child = process.start(Mode.NEW, process.outbox.begin("child", "id:0"), parent=_KEY)
    assert _parent_of(server, child) == run.run_id


def test_a_process_that_another_one_forestalls_goes_on_with_the_agreed_run(
    server: FakeMlflow, process: _Process
) -> None:
    ended = {"_mlflow_iap.agreed": "true", "mlflow_iap.ended": "why"}
    found = _made(server, **ended)

    def delete_the_tag_too(method: str) -> None:
        if method == "delete_tag":
            found.tags.pop("mlflow_iap.ended", None)

    server.on_request = delete_the_tag_too
    assert process.start(Mode.SHARED).run_id == found.run_id


@pytest.mark.parametrize("mode", [Mode.SHARED, Mode.RESUMED])
def test_a_tag_that_two_processes_insert_at_the_same_time_is_set_again(
    server: FakeMlflow, process: _Process, mode: Mode
) -> None:
    found = _made(server, **{"_mlflow_iap.agreed": "true"})
    server.refuse("set_tag", "(sqlite3.IntegrityError) UNIQUE constraint failed: tags.key")
    with pytest.raises(NotYet, match="at the same time"):
        process.start(mode)
    assert process.start(mode).run_id == found.run_id


def test_an_agreed_run_that_is_deleted_at_the_same_time_is_looked_up_again(
    server: FakeMlflow, process: _Process
) -> None:
    found = _made(server, **{"_mlflow_iap.agreed": "true"})

    def delete(method: str) -> None:
        if method == "set_tag":
            found.is_deleted = True

    server.on_request = delete
    with pytest.raises(NotYet, match="at the same time"):
        process.start(Mode.SHARED)
    other = _made(server, **{"_mlflow_iap.agreed": "true"})
    server.on_request = lambda method: None
    assert process.start(Mode.SHARED).run_id == other.run_id


def test_a_later_process_uses_the_agreed_run(
    server: FakeMlflow, new_process: NewProcess, clock: VirtualClock
) -> None:
    first, later = new_process(), new_process()
    run = first.run()
    _agree(first, run, clock)
    assert later.start(Mode.SHARED).run_id == run.run_id


def test_a_process_that_finds_a_run_without_agreement_waits_too(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    found = _made(server)
    run = process.run()
    _agree(process, run, clock)
    assert run.run_id == found.run_id


def test_a_run_that_another_process_deletes_at_the_same_time_does_no_harm(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    kept = _made(server, **{"_mlflow_iap.agreed": "true"})
    _made(server)
    server.refuse("delete_run", "it is deleted")
    assert process.start(Mode.SHARED).run_id == kept.run_id


# --- lost responses ----------------------------------------------------------------------------


def test_a_run_whose_response_was_lost_is_found_and_not_created_again(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    server.lose_answer("create_run")
    run = process.run()
    with pytest.raises(IAPUnknownOutcomeError):
        process.start(Mode.NEW, run)
    process.start(Mode.NEW, run)
    assert server.calls.count("create_run") == 1
    assert run.run_id == server.run(_KEY).run_id


def test_a_run_that_does_not_appear_is_created_again_after_half_a_minute(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    server.drop("create_run", IAPUnknownOutcomeError("lost"))
    run = process.run()
    with pytest.raises(IAPUnknownOutcomeError):
        process.start(Mode.NEW, run)
    clock.advance(10.0)
    with pytest.raises(NotYet, match="response to the run's creation was lost") as error:
        process.start(Mode.NEW, run)
    assert _wait(clock, error) == 20.0
    process.start(Mode.NEW, run)
    assert server.run(_KEY).tags["_mlflow_iap.asked_twice"] == "true"


def test_a_run_that_was_certainly_not_created_is_created_again_at_once(
    server: FakeMlflow, process: _Process
) -> None:
    server.drop("create_run", IAPUnavailableError("away"))
    run = process.run()
    with pytest.raises(IAPUnavailableError):
        process.start(Mode.NEW, run)
    process.start(Mode.NEW, run)
    assert server.calls == ["create_run", "create_run"]
    assert "_mlflow_iap.asked_twice" not in server.run(_KEY).tags


def test_no_error_of_mlflow_s_own_client_says_that_the_run_was_not_created(
    server: FakeMlflow, new_process: NewProcess
) -> None:
    process = new_process(FakePlainClient)
    server.lose_answer("create_run", MlflowException("timed out"))
    run = process.run()
    with pytest.raises(MlflowException):
        process.start(Mode.NEW, run)
    process.start(Mode.NEW, run)
    assert run.run_id == server.run(_KEY).run_id


@pytest.mark.parametrize("mode", [Mode.NEW, Mode.CLAIMED, Mode.LOGGED, Mode.RESUMED])
def test_a_run_that_the_server_creates_late_is_deleted_again(
    mode: Mode, server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    server.delay("create_run")
    run = process.run()
    with pytest.raises(IAPUnknownOutcomeError):
        process.start(mode, run)
    clock.advance(30.0)
    process.start(mode, run)
    server.catch_up()
    assert len(server.runs_of(_KEY)) == 2
    process.creation.end(run, "FINISHED", 9)
    assert server.run(_KEY).run_id == run.run_id
    assert (server.run(_KEY).status, server.run(_KEY).end_time) == ("FINISHED", 9)


def test_a_second_late_run_is_deleted_too(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    server.delay("create_run", times=2)
    run = process.run()
    for _ in range(2):
        with pytest.raises(IAPUnknownOutcomeError):
            process.start(Mode.NEW, run)
        clock.advance(30.0)
    server.catch_up()
    process.start(Mode.NEW, run)
    process.creation.end(run, "FINISHED", 9)
    assert server.run(_KEY).run_id == run.run_id


def test_a_late_duplicate_of_a_shared_run_is_deleted_when_the_agreed_run_ends(
    server: FakeMlflow, new_process: NewProcess, clock: VirtualClock
) -> None:
    slow, quick = new_process(), new_process()
    server.delay("create_run")
    run = slow.run()
    with pytest.raises(IAPUnknownOutcomeError):
        slow.start(Mode.SHARED, run)
    _agree(quick, quick.run(), clock)
    slow.start(Mode.SHARED, run)
    server.catch_up()
    slow.creation.end(run, "FINISHED", 9)
    assert server.run(_KEY).run_id == run.run_id


def test_a_late_run_that_was_logged_to_is_kept(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    found = _made(server, **{"_mlflow_iap.asked_twice": "true"})
    other = _made(server)
    other.params["p"] = "1"
    process.start(Mode.LOGGED)
    assert {run.run_id for run in server.runs_of(_KEY)} == {found.run_id, other.run_id}


# --- parents -----------------------------------------------------------------------------------


def _parent_of(server: FakeMlflow, run: QueuedRun) -> str | None:
    return server.runs[str(run.run_id)].tags.get("mlflow.parentRunId")


def test_a_child_waits_until_its_parent_exists(server: FakeMlflow, process: _Process) -> None:
    child = process.run("child")
    with pytest.raises(NotYet, match="parent"):
        process.start(Mode.NEW, child, parent=_KEY)
    parent = _made(server)
    process.start(Mode.NEW, child, parent=_KEY)
    assert _parent_of(server, child) == parent.run_id


def test_the_children_of_a_parent_look_it_up_once(server: FakeMlflow, process: _Process) -> None:
    _made(server)
    for number in range(3):
        process.start(Mode.NEW, process.run(str(number)), parent=_KEY)
    assert server.calls.count(_LOOK) == 1


def test_a_child_waits_until_its_parent_is_agreed_on(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    parent, child = process.run(), process.run("child")
    with pytest.raises(NotYet):
        process.start(Mode.SHARED, parent)
    with pytest.raises(NotYet, match="parent"):
        process.start(Mode.NEW, child, parent=_KEY)
    clock.advance(2.0)
    process.start(Mode.SHARED, parent)
    process.start(Mode.NEW, child, parent=_KEY)
    assert _parent_of(server, child) == parent.run_id


def test_an_agreed_parent_takes_precedence(server: FakeMlflow, process: _Process) -> None:
    ids = {_made(server).run_id for _ in range(3)}
    agreed = server.runs[max(ids)]
    agreed.tags["_mlflow_iap.agreed"] = "true"
    child = process.start(Mode.NEW, process.run("child"), parent=_KEY)
    assert _parent_of(server, child) == agreed.run_id


def test_a_child_whose_parent_mlflow_rejects_is_created_without_a_parent(
    server: FakeMlflow, process: _Process
) -> None:
    process.creation.refuse(process.run())
    child = process.start(Mode.NEW, process.run("child"), parent=_KEY)
    assert _parent_of(server, child) is None


def test_a_parent_that_is_given_by_its_id_is_not_looked_up(
    server: FakeMlflow, process: _Process
) -> None:
    child = process.start(Mode.NEW, process.run("child"), parent_id="7")
    assert (server.calls, _parent_of(server, child)) == (["create_run"], "7")


# --- experiments -------------------------------------------------------------------------------


def _names(server: FakeMlflow) -> list[str]:
    return [experiment.name for experiment in server.experiments.values()]


def test_a_missing_experiment_is_created_once(server: FakeMlflow, process: _Process) -> None:
    for number in range(3):
        process.start(Mode.NEW, process.run(str(number), "name:new"))
    assert _names(server) == ["Default", "new"]
    assert server.calls.count("get_experiment_by_name") == 1


def test_only_a_new_experiment_is_marked_as_model_training(
    server: FakeMlflow, process: _Process
) -> None:
    server.add_experiment("old")
    for name in ("old", "new"):
        process.start(Mode.NEW, process.run(name, f"name:{name}"))
    tags = {each.name: each.tags for each in server.experiments.values()}
    expected = {"mlflow.experimentKind": "custom_model_development"}
    assert (tags["Default"], tags["old"], tags["new"]) == ({}, {}, expected)


def test_an_experiment_that_another_process_creates_at_the_same_time_is_shared(
    server: FakeMlflow, process: _Process
) -> None:
    def make(method: str) -> None:
        if method == "create_experiment":
            server.add_experiment("new")

    server.on_request = make
    run = process.start(Mode.NEW, process.run(experiment="name:new"))
    assert server.runs[str(run.run_id)].experiment_id == "1"
    assert _names(server) == ["Default", "new"]


def test_an_experiment_whose_response_was_lost_is_found(
    server: FakeMlflow, process: _Process
) -> None:
    server.lose_answer("create_experiment")
    process.start(Mode.NEW, process.run(experiment="name:new"))
    assert _names(server) == ["Default", "new"]


def test_an_experiment_that_cannot_be_created_is_retried_later(
    server: FakeMlflow, process: _Process
) -> None:
    server.drop("create_experiment")
    run = process.run(experiment="name:new")
    with pytest.raises(IAPUnavailableError):
        process.start(Mode.NEW, run)
    process.start(Mode.NEW, run)
    assert _names(server) == ["Default", "new"]


def _replace(server: FakeMlflow, how: str) -> None:
    """Delete experiment 1 permanently, and perhaps create another one with the same name."""
    del server.experiments["1"]
    server.runs.clear()
    if how == "created again":
        server.add_experiment("new", "2")


@pytest.mark.parametrize("how", ["created again", "gone"])
def test_an_experiment_that_is_gone_is_looked_up_by_its_name(
    how: str, server: FakeMlflow, process: _Process
) -> None:
    process.start(Mode.NEW, process.run("first", "name:new"))
    _replace(server, how)
    run = process.run("second", "name:new")
    with pytest.raises(NotYet) as error:
        process.start(Mode.NEW, run)
    assert _wait(process._clock, error) == 0.0
    process.start(Mode.NEW, run)
    assert _names(server) == ["Default", "new"]
    assert server.experiments[server.run("second").experiment_id].name == "new"


def test_the_runs_of_an_experiment_that_is_gone_are_forgotten(
    server: FakeMlflow, process: _Process
) -> None:
    parent = process.start(Mode.RESUMED, process.run("parent", "name:new"))
    process.start(Mode.CLAIMED, process.run("again", "name:new"))
    _replace(server, "created again")
    child = process.run("child", "name:new")
    with pytest.raises(NotYet, match="experiment"):
        process.start(Mode.NEW, child, parent="parent")
    process.start(Mode.CLAIMED, process.run("again", "name:new"))
    assert server.run("again").experiment_id == "2"
    parent = process.start(Mode.RESUMED, process.run("parent", "name:new"))
    process.start(Mode.NEW, child, parent="parent")
    assert server.run("child").tags["mlflow.parentRunId"] == parent.run_id


def test_an_experiment_that_its_user_deleted_is_not_created_again(
    server: FakeMlflow, process: _Process
) -> None:
    process.start(Mode.NEW, process.run("first", "name:new"))
    experiment = server.experiments["1"]
    experiment._lifecycle_stage = LifecycleStage.DELETED
    with pytest.raises(MlflowException, match="must be in the 'active' state"):
        process.start(Mode.NEW, process.run("second", "name:new"))
    experiment._lifecycle_stage = LifecycleStage.ACTIVE  # restored
    process.start(Mode.NEW, process.run("third", "name:new"))
    assert server.run("third").experiment_id == "1"


def test_a_renamed_experiment_keeps_the_runs_of_its_process_together(
    server: FakeMlflow, process: _Process
) -> None:
    process.start(Mode.NEW, process.run("first", "name:new"))
    server.experiments["1"]._set_name("renamed")
    process.start(Mode.NEW, process.run("second", "name:new"))
    assert {run.experiment_id for run in server.runs.values()} == {"1"}
    assert _names(server) == ["Default", "renamed"]


# --- servers that lose runs --------------------------------------------------------------------


def _lose(server: FakeMlflow, *keys: str) -> None:
    """Restore a backup that is older than the runs."""
    for key in keys:
        del server.runs[server.run(key).run_id]


def _create_again(process: _Process, run: QueuedRun) -> None:
    run_id = str(run.run_id)
    assert process.creation.stage(run_id) is None
    assert process.creation.can_create_again(run, run_id)
    process.creation.known(run)


@pytest.mark.parametrize("mode", [Mode.NEW, Mode.CLAIMED, Mode.LOGGED, Mode.RESUMED])
def test_a_run_that_the_server_lost_is_created_again_as_it_was_started(
    mode: Mode, server: FakeMlflow, process: _Process
) -> None:
    run = process.started(mode, tags={"a": "b"}, parent_id="p")
    _lose(server, _KEY)
    _create_again(process, run)
    found = server.run(_KEY)
    assert (run.run_id, found.name, found.start_time) == (found.run_id, "name", 7)
    assert (found.tags["a"], found.tags["mlflow.parentRunId"]) == ("b", "p")
    assert "What was delivered before is missing" in found.tags[AGAIN_TAG]


def test_a_shared_run_that_the_server_lost_is_agreed_on_again(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    run = process.run()
    with pytest.raises(NotYet) as error:
        process.started(Mode.SHARED, run)
    _wait(clock, error)
    process.start(Mode.SHARED, run)
    _lose(server, _KEY)
    with pytest.raises(NotYet) as error:
        _create_again(process, run)
    _wait(clock, error)
    process.creation.known(run)
    found = server.run(_KEY)
    assert run.run_id == found.run_id
    assert {AGAIN_TAG, "_mlflow_iap.agreed"} <= found.tags.keys()


def test_a_lost_run_that_another_process_has_created_again_is_found(
    server: FakeMlflow, new_process: NewProcess
) -> None:
    one, two = new_process(), new_process()
    run = one.started(Mode.RESUMED)
    other = two.started(Mode.RESUMED)
    _lose(server, _KEY)
    _create_again(one, run)
    _create_again(two, other)
    assert run.run_id == other.run_id == server.run(_KEY).run_id


def test_a_run_that_the_server_loses_twice_is_not_created_a_third_time(
    server: FakeMlflow, process: _Process
) -> None:
    run = process.started(Mode.NEW)
    _lose(server, _KEY)
    _create_again(process, run)
    _lose(server, _KEY)
    assert not process.creation.can_create_again(run, str(run.run_id))


def test_a_lost_run_that_another_process_began_is_not_created_again(
    server: FakeMlflow, process: _Process
) -> None:
    run = process.run(is_owned=False, run_id="lost")
    assert not process.creation.can_create_again(run, "lost")


def test_the_lost_parent_of_a_lost_child_is_created_again(
    server: FakeMlflow, process: _Process
) -> None:
    parent = process.started(Mode.RESUMED, process.run("parent"), tags={"a": "b"})
    child = process.started(Mode.NEW, parent="parent")
    _lose(server, "parent", _KEY)
    _create_again(process, child)
    found = server.run("parent")
    assert (found.tags["a"], found.run_id) == ("b", parent.run_id)
    assert server.run(_KEY).tags["mlflow.parentRunId"] == parent.run_id


def test_a_run_waits_a_minute_for_a_missing_parent_and_is_then_created_without_it(
    server: FakeMlflow, process: _Process, clock: VirtualClock
) -> None:
    child = process.run()
    process.begin(child, Mode.NEW, parent="not here")
    child.run_id = "lost"
    assert process.creation.can_create_again(child, "lost")
    began = clock.monotonic()
    while child.run_id is None:
        try:
            process.creation.known(child)
        except NotYet as error:
            clock.advance(error.after or 0.0)
    assert clock.monotonic() - began == pytest.approx(60.0)
    assert server.calls.count(_LOOK) < 40
    assert server.run(_KEY).tags[AGAIN_TAG].endswith("So is its parent.")
