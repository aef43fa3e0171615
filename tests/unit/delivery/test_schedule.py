"""When runs are delivered: how long records wait, which run is first, and pauses after failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlflow_iap_callbacks.delivery import schedule as schedule_module
from mlflow_iap_callbacks.delivery.refusals import NotYet
from mlflow_iap_callbacks.delivery.schedule import Schedule, Turn
from mlflow_iap_callbacks.outbox import Outbox, QueuedRun

NewRun = Callable[..., QueuedRun]


@pytest.fixture
def schedule() -> Schedule:
    return Schedule()


@pytest.fixture
def new_run() -> NewRun:
    """Create runs of one outbox; each gets a new key unless one is given."""
    outbox = Outbox(None, "http://server")

    def make(key: str | None = None, **given: Any) -> QueuedRun:
        run = outbox.begin(key or f"key {len(list(outbox._runs))}", "name:experiment")
        for name, value in given.items():
            setattr(run, name, value)
        return run

    return make


def _take(schedule: Schedule, now: float) -> Turn:
    turn = schedule.take(now)
    assert turn is not None
    return turn


def _fail(schedule: Schedule, now: float, error: Exception | None = None) -> str | None:
    return schedule.failed(_take(schedule, now), error or OSError("no answer"), now)


def _adopted(run: QueuedRun, *, is_owned: bool) -> QueuedRun:
    """The same run in the outbox of a process that died."""
    outbox = Outbox(None, "http://server")
    outbox.is_adopted = True
    return outbox.begin(run.key, run.experiment, is_owned=is_owned)


@pytest.mark.parametrize(("age", "wait"), [(0.0, 5.0), (40.0, 5.0), (200.0, 20.0), (2000.0, 60.0)])
def test_records_wait_a_tenth_of_the_run_s_age_for_more_records(
    age: float, wait: float, schedule: Schedule, new_run: NewRun
) -> None:
    run = new_run()
    schedule.add(run, 1, 0.0)
    schedule.ended(_take(schedule, 5.0))
    schedule.add(run, 1, age)
    assert schedule.take(age + wait - 0.1) is None
    assert schedule.seconds_to_next(age) == wait
    assert _take(schedule, age + wait).run is run


def test_later_records_do_not_delay_the_delivery(schedule: Schedule, new_run: NewRun) -> None:
    run = new_run()
    for second in range(5):
        schedule.add(run, 1, float(second))
    assert _take(schedule, 5.0).run is run


@pytest.mark.parametrize(
    ("entities", "run"),
    [(1, {"is_ended": True}), (1, {"is_urgent": True}), (1000, {})],
    ids=["ended", "others wait for it", "a full request"],
)
def test_a_new_run_is_due_at_once(
    entities: int, run: dict[str, bool], schedule: Schedule, new_run: NewRun
) -> None:
    schedule.add(new_run(**run), entities, 7.0)
    assert schedule.take(7.0) is not None


def test_a_run_that_others_waited_for_waits_again_once_it_is_created(
    schedule: Schedule, new_run: NewRun
) -> None:
    schedule.add(new_run(is_urgent=True, run_id="1"), 1, 7.0)
    assert schedule.take(7.0) is None


def test_entities_are_counted_from_the_last_delivery(schedule: Schedule, new_run: NewRun) -> None:
    run = new_run()
    schedule.add(run, 999, 0.0)
    schedule.ended(_take(schedule, 5.0))
    schedule.add(run, 999, 6.0)
    assert schedule.take(6.0) is None
    schedule.add(run, 1, 6.0)
    assert schedule.take(6.0) is not None


def test_a_run_is_delivered_by_one_thread_at_a_time(schedule: Schedule, new_run: NewRun) -> None:
    run = new_run(is_ended=True)
    schedule.add(run, 1, 0.0)
    turn = _take(schedule, 0.0)
    schedule.add(run, 1, 1.0)
    assert schedule.take(1.0) is None
    schedule.ended(turn)
    assert schedule.take(1.0) is turn


def test_the_run_that_has_waited_longest_comes_first(schedule: Schedule, new_run: NewRun) -> None:
    runs = [new_run(is_ended=True) for _ in range(3)]
    for moment, run in ((3.0, runs[0]), (1.0, runs[1]), (2.0, runs[2])):
        schedule.add(run, 1, moment)
    assert [_take(schedule, 4.0).run for _ in runs] == [runs[1], runs[2], runs[0]]


def test_records_of_a_dead_process_are_sent_first(schedule: Schedule, new_run: NewRun) -> None:
    own = new_run(is_ended=True)
    adopted = _adopted(own, is_owned=True)
    schedule.add(own, 1, 0.0)
    schedule.add(adopted, 1, 1.0)
    turn = _take(schedule, 9.0)
    assert turn.run is adopted
    assert schedule.take(9.0) is None
    adopted.is_ended = True
    schedule.ended(turn)
    assert _take(schedule, 9.0).run is own


def test_a_run_that_this_process_creates_does_not_wait_for_a_dead_child_process(
    schedule: Schedule, new_run: NewRun
) -> None:
    own = new_run(is_ended=True)
    schedule.add(own, 1, 0.0)
    schedule.add(_adopted(own, is_owned=False), 1, 0.0)
    turns = {_take(schedule, 9.0).run for _ in range(2)}
    assert own in turns


def test_a_run_with_the_same_key_in_another_experiment_is_another_run(
    schedule: Schedule, new_run: NewRun
) -> None:
    own, other = new_run("key", is_ended=True), new_run("key", experiment="name:other")
    schedule.add(own, 1, 0.0)
    schedule.add(_adopted(other, is_owned=True), 1, 5.0)
    assert _take(schedule, 5.0).run is own


def test_pauses_after_failures_of_a_run_double_up_to_a_minute(
    schedule: Schedule, new_run: NewRun
) -> None:
    schedule.add(new_run(is_ended=True), 1, 0.0)
    now, pauses = 0.0, []
    for _ in range(8):
        turn = _take(schedule, now)
        schedule.failed(turn, NotYet("a while that grows"), now)
        pauses.append(turn.not_before - now)
        assert schedule.take(turn.not_before - 0.1) is None
        now = turn.not_before
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_a_run_that_has_to_wait_is_not_a_problem(schedule: Schedule, new_run: NewRun) -> None:
    schedule.add(new_run(is_ended=True), 1, 0.0)
    assert _fail(schedule, 0.0, NotYet("others create it", 2.0)) is None
    assert schedule.away_since is None
    assert schedule.take(1.9) is None
    assert schedule.take(2.0) is not None


def test_a_failing_server_is_tried_with_one_request_at_a_time(
    schedule: Schedule, new_run: NewRun
) -> None:
    for _ in range(3):
        schedule.add(new_run(is_ended=True), 1, 0.0)
    assert _fail(schedule, 0.0) == "server"
    assert schedule.away_since == 0.0
    assert schedule.take(0.9) is None
    turn = _take(schedule, 1.0)
    assert schedule.take(1.0) is None
    assert schedule.failed(turn, OSError(), 1.0) is None
    assert schedule.take(2.9) is None
    turn = _take(schedule, 3.0)
    assert schedule.succeeded(4.0) == 4.0
    assert schedule.away_since is None
    assert schedule.take(4.0) is not None


def test_pauses_for_an_unreachable_server_double_up_to_half_a_minute(
    schedule: Schedule, new_run: NewRun
) -> None:
    now, pauses = 0.0, []
    for _ in range(8):
        schedule.add(new_run(is_ended=True), 1, now)  # runs that have not failed themselves
        _fail(schedule, now)
        pauses.append(schedule._away_until - now)
        now = schedule._away_until
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_failing_run_does_not_delay_others(schedule: Schedule, new_run: NewRun) -> None:
    bad = new_run(is_ended=True)
    schedule.add(bad, 1, 0.0)
    assert _fail(schedule, 0.0) == "server"  # the run may be at fault as well
    for now, in_trouble in ((2.0, "run"), (8.0, None)):
        assert schedule.succeeded(now - 1.0) is not None or now > 2.0
        assert _fail(schedule, now) == in_trouble
        assert schedule.away_since is None
    schedule.add(new_run(is_ended=True), 1, 9.0)
    assert _take(schedule, 9.0).run is not bad


def _ask(schedule: Schedule, run: QueuedRun, now: float) -> Turn:
    schedule.add(run, 1, now)
    turn = _take(schedule, now)
    turn.asked_at = now
    return turn


def test_a_server_that_does_not_answer_is_unreachable_after_twenty_seconds(
    schedule: Schedule, new_run: NewRun
) -> None:
    turn = _ask(schedule, new_run(is_ended=True), 0.0)
    assert schedule.silence(19.0) is None
    assert schedule.silence(20.0) == 20.0
    assert schedule.away_since == 0.0
    assert schedule.silence(21.0) is None  # this was returned before
    schedule.add(new_run(is_ended=True), 1, 21.0)
    assert schedule.take(21.0) is None
    assert schedule.succeeded(25.0, 25.0) == 25.0
    schedule.ended(turn)
    assert schedule.take(25.0) is not None


def test_a_slow_server_is_unreachable_after_twice_its_usual_time(
    schedule: Schedule, new_run: NewRun
) -> None:
    schedule.ended(_ask(schedule, new_run(is_ended=True), 0.0))
    schedule.succeeded(25.0, 25.0)
    turn = _ask(schedule, new_run(is_ended=True), 25.0)
    assert schedule.silence(74.0) is None
    assert schedule.silence(75.0) == 50.0
    schedule.ended(turn)
    for _ in range(30):  # it is quick again
        schedule.succeeded(80.0, 0.1)
    _ask(schedule, new_run(is_ended=True), 80.0)
    assert schedule.silence(100.0) == 20.0


def test_a_server_that_answers_other_requests_is_reachable(
    schedule: Schedule, new_run: NewRun
) -> None:
    _ask(schedule, new_run(is_ended=True), 0.0)
    schedule.succeeded(15.0)
    assert schedule.silence(30.0) is None
    assert schedule.silence(35.0) == 20.0


def test_an_upload_has_no_time_limit(schedule: Schedule, new_run: NewRun) -> None:
    turn = _ask(schedule, new_run(is_ended=True), 0.0)
    turn.asked_at = float("inf")
    assert schedule.silence(5000.0) is None


def test_hurrying_ends_all_pauses(schedule: Schedule, new_run: NewRun) -> None:
    schedule.add(new_run(), 1, 0.0)
    schedule.hurry()
    _fail(schedule, 0.0)
    assert schedule.take(0.0) is None
    schedule.hurry()
    assert schedule.take(0.0) is not None


def test_only_the_given_run_is_hurried(schedule: Schedule, new_run: NewRun) -> None:
    runs = [new_run(), new_run()]
    for run in runs:
        schedule.add(run, 1, 0.0)
    schedule.hurry(runs[1])
    assert _take(schedule, 0.0).run is runs[1]
    assert schedule.take(0.0) is None


def test_the_schedule_is_stuck_while_all_waiting_runs_have_failed(
    schedule: Schedule, new_run: NewRun
) -> None:
    assert not schedule.is_stuck
    schedule.add(new_run(is_ended=True), 1, 0.0)
    assert not schedule.is_stuck
    _fail(schedule, 0.0)
    assert schedule.is_stuck
    schedule.succeeded(1.0)
    assert not schedule.is_stuck
    _fail(schedule, 2.0)
    assert schedule.is_stuck
    schedule.add(new_run(), 1, 3.0)
    assert not schedule.is_stuck


def test_many_ended_runs_stay_on_disk_until_there_is_room(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_module, "_MAX_TURNS", 20)
    outbox = Outbox(None, "http://server")
    runs = []
    for number in range(90):
        run = outbox.begin(str(number), "name:experiment")
        outbox.intake.append(run.number, "start", {"key": run.key, "experiment": run.experiment})
        run.is_ended = True
        runs.append(run)
    outbox.collect()
    for run in runs:
        schedule.add(run, 1, 0.0)
    assert schedule.has_more
    assert len(schedule._turns) <= 20
    delivered = set()
    while True:
        schedule.load([outbox], 1.0)
        turn = schedule.take(1.0)
        if turn is None:
            break
        delivered.add(turn.run)
        outbox.settle(turn.run, outbox.read(turn.run, outbox.last_seq))
        schedule.ended(turn)
    assert delivered == set(runs)
    assert not schedule.has_more
