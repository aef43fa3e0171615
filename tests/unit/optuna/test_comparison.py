"""Trials that no callback saw, in an MLflow in memory and on a clock that the test moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from fake_mlflow import FakeClient, FakeMlflow, FakeRun
from mlflow_iap_callbacks import IAPMLflowCallback
from mlflow_iap_callbacks.delivery.closing import Deadline
from mlflow_iap_callbacks.optuna import callback as callback_module
from mlflow_iap_callbacks.optuna import comparison, sync
from mlflow_iap_callbacks.optuna.comparison import Comparer
from optuna_helpers import STUDY_TAG, TRIAL_TAG
from own_log import said_by_us
from virtual_process import VirtualClock, VirtualProcess
from waiting import wait_until


def _x(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0.0, 1.0)


class _Comparer(Comparer):
    """A comparer whose ticks the test calls."""

    def _start(self) -> None:
        self._thread = "no thread"  # type: ignore[assignment]

    def _do_in_thread(self, work: Callable[[], None], deadline: Deadline, seconds: float) -> None:
        work()

    def _pause(self, seconds: float) -> None:
        self._clock.advance(seconds)  # type: ignore[attr-defined]


class _Worker(VirtualProcess):
    """A process that works on a study."""

    def __init__(self, world: _World, study: optuna.Study, **options: Any) -> None:
        self._world = world
        self.comparer = _Comparer(world.clock)
        super().__init__(world.server, world.clock, world.new_client)
        self.study = study
        self.callback = IAPMLflowCallback(client=self.client, study_run=False, **options)

    def enter(self) -> None:
        super().enter()
        self._world.patch.setattr(callback_module, "comparer", self.comparer)

    def run(self, trials: int = 1) -> None:
        """Run trials, then do what the thread does at once: read the study."""
        self.enter()
        self.study.optimize(_x, trials, callbacks=[self.callback])
        self.comparer.tick()

    def go_on(self, seconds: float) -> None:
        self.enter()
        ends = self.clock.monotonic() + seconds
        while self.clock.monotonic() < ends:
            self.deliver_for(0.5)
            self.comparer.tick()

    def exit(self) -> bool:
        self.enter()
        return bool(self.callback.close())


class _World:
    """A server, a clock, and a storage with one study."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self.server = FakeMlflow()
        self.searches = 0
        self.clock = VirtualClock()
        self.clock.jump(time.time() - self.clock.time())  # trials begin and end in real time
        self.patch = patch
        self._path = str(folder / "journal")
        self._stack = stack

    def study(self) -> optuna.Study:
        storage = optuna.storages.JournalStorage(JournalFileBackend(self._path))
        return optuna.create_study(study_name="mine", storage=storage, load_if_exists=True)

    def worker(self, study: optuna.Study | None = None, **options: Any) -> _Worker:
        worker = _Worker(self, study or self.study(), **options)
        self._stack.callback(worker.close)
        return worker

    def unseen(self, state: TrialState = TrialState.COMPLETE, *, seconds_ago: float = 3600) -> int:
        """Add a trial whose process died before its callback; return its number."""
        study = self.study()
        value = 2.0 if state == TrialState.COMPLETE else None
        trial = create_trial(state=state, value=value, user_attrs={"kind": "unseen"})
        assert trial.datetime_start is not None
        ends = trial.datetime_start - timedelta(seconds=seconds_ago)
        trial.datetime_start = ends - timedelta(seconds=60)
        trial.datetime_complete = ends if state.is_finished() else None
        study.add_trial(trial)
        return len(study.trials) - 1

    def runs(self) -> dict[int, FakeRun]:
        """The runs by number of their trial; each trial has one."""
        found = [run for run in self.server.runs.values() if not run.is_deleted]
        by_number = {int(run.tags[TRIAL_TAG]): run for run in found}
        assert len(by_number) == len(found)
        return by_number

    def new_client(self, server: FakeMlflow) -> FakeClient:
        """A client that counts searches for the runs of a study."""
        client = FakeClient(server)
        search = client.search_runs

        def search_runs(ids: Any, query: str, *args: Any, **options: Any) -> Any:
            self.searches += STUDY_TAG in query
            return search(ids, query, *args, **options)

        client.search_runs = search_runs  # type: ignore[assignment,method-assign]
        return client


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_World]:
    with ExitStack() as stack:
        yield _World(tmp_path, monkeypatch, stack)


# --- at the join -------------------------------------------------------------------------------


def test_a_trial_that_no_callback_saw_is_logged_20_seconds_after_another_process_joins(
    world: _World,
) -> None:
    number = world.unseen()
    worker = world.worker()
    worker.run()
    worker.go_on(15.0)
    assert world.runs().keys() == {1}
    worker.go_on(15.0)
    assert world.runs().keys() == {number, 1}
    run = world.runs()[number]
    assert (run.status, run.tags["kind"], run.curve("value")) == ("FINISHED", "unseen", [(0, 2.0)])


def test_a_process_that_runs_only_its_own_trials_never_searches(world: _World) -> None:
    worker = world.worker()
    worker.run(3)
    worker.go_on(60.0)
    assert worker.exit()
    assert world.runs().keys() == {0, 1, 2}
    assert world.searches == 0


def test_a_process_searches_only_once_for_earlier_trials_if_none_is_missing(
    world: _World,
) -> None:
    first = world.worker()
    first.run(3)
    assert first.exit()
    second = world.worker()
    second.run(2)
    second.go_on(60.0)
    assert second.exit()
    assert second.exit()
    assert world.runs().keys() == set(range(5))
    assert world.searches == 1


def test_a_missing_run_is_created_once_no_matter_how_many_processes_join_at_once(
    world: _World,
) -> None:
    numbers = {world.unseen(), world.unseen(TrialState.FAIL)}
    workers = [world.worker() for _ in range(4)]
    for worker in workers:
        worker.run()
    world.clock.advance(20.0)
    for worker in workers:  # each finds the same before any of them has delivered
        worker.enter()
        worker.deliver_for(0.5)
        worker.comparer.tick()
    slower = workers[1:]

    def overtake(method: str) -> None:
        if method == "create_run" and slower:
            slower.pop().sender.deliver_next()

    world.server.on_request = overtake
    for _ in range(20):
        for worker in workers:
            worker.enter()
            worker.deliver_for(0.5)
    assert world.runs().keys() == numbers | {2, 3, 4, 5}
    assert [world.runs()[number].status for number in range(2)] == ["FINISHED", "FAILED"]
    assert not slower
    searches = world.searches
    again = world.worker()
    again.run()
    again.go_on(30.0)
    assert world.searches == searches + 1  # the runs that were deleted do not count
    assert len(world.runs()) == 7


@pytest.mark.parametrize("hours", [-9, 9])
def test_the_clock_and_time_zone_of_another_machine_make_no_difference(
    world: _World, hours: int
) -> None:
    number = world.unseen(seconds_ago=3600.0 * hours)
    worker = world.worker()
    worker.run()
    worker.go_on(30.0)
    assert world.runs().keys() == {number, 1}


def test_a_study_with_too_many_missing_trials_is_left_to_sync_with_one_warning(
    world: _World, caplog: pytest.LogCaptureFixture
) -> None:
    world.patch.setattr(comparison, "MOST_TRIALS", 2)
    for _ in range(3):
        world.unseen()
    worker = world.worker()
    worker.run()
    worker.go_on(60.0)
    assert worker.exit()
    assert world.runs().keys() == {3}
    (said,) = said_by_us(caplog)
    assert "lacks 3 ended trials of study 'mine'" in said
    assert worker.callback.sync(worker.study) == 3


def test_trials_that_the_old_callback_logged_are_left_to_sync_and_later_ones_are_not(
    world: _World,
) -> None:
    old = [world.unseen() for _ in range(2)]
    experiment_id = world.server.add_experiment("mine")
    client = FakeClient(world.server)
    for trial in world.study().trials:  # as optuna_integration.MLflowCallback does
        tags = {"number": str(trial.number), "datetime_start": str(trial.datetime_start)}
        run_id = client.create_run(experiment_id, 0, tags, str(trial.number)).info.run_id
        world.server.runs[run_id].tags[TRIAL_TAG] = f"{trial.number}000"  # for ``runs``
    first = world.worker()
    asked = first.study.ask()
    first.callback.run(asked)
    first.comparer.tick()
    first.go_on(30.0)
    first.callback.log_trial(first.study, first.study.tell(asked, 1.0))
    assert first.exit()
    unseen = world.unseen()
    second = world.worker()
    second.run()
    second.go_on(30.0)
    assert second.exit()
    assert world.runs().keys() == {0, 1000, 2, unseen, 4}
    assert second.callback.sync(second.study) == len(old)


def test_a_large_study_is_compared_as_far_back_as_three_pages_reach(world: _World) -> None:
    older, newer = world.unseen(seconds_ago=9000), world.unseen(seconds_ago=10)
    first = world.worker()
    first.run(30)
    assert first.exit()  # logs them too
    for number in (older, newer):
        del world.server.runs[world.runs()[number].run_id]
    world.patch.setattr(sync, "_RUNS_OF_A_PAGE", 2)
    searches = world.searches
    second = world.worker()
    second.run()
    second.go_on(30.0)
    assert world.searches - searches == 3
    assert len(world.runs()) == 31
    assert second.callback.sync(second.study) == 2


# --- at the end --------------------------------------------------------------------------------


def test_a_process_that_ends_soon_logs_the_missing_trials_from_before_it(world: _World) -> None:
    number = world.unseen()
    worker = world.worker()
    worker.run()
    began = world.clock.monotonic()
    assert worker.exit()
    assert world.runs().keys() == {number, 1}
    assert world.clock.monotonic() - began < 5.0


def test_a_trial_that_ended_just_before_the_process_began_is_logged_after_20_seconds(
    world: _World,
) -> None:
    number = world.unseen(seconds_ago=2.0)
    worker = world.worker()
    worker.run()
    began = world.clock.monotonic()
    assert worker.exit()
    assert world.runs().keys() == {number, 1}
    assert 15.0 < world.clock.monotonic() - began < 25.0


def test_a_process_does_not_wait_for_new_trials_of_live_processes(world: _World) -> None:
    before, meanwhile = world.worker(), world.worker()
    before.run()
    worker = world.worker()
    worker.run()
    meanwhile.run()
    world.clock.meanwhile = before.sender.deliver_next
    worker.comparer._pause = lambda seconds: before.deliver_for(seconds)  # type: ignore[method-assign]
    began = world.clock.monotonic()
    assert worker.exit()
    assert world.runs().keys() == {0, 1}
    assert world.clock.monotonic() - began < 6.0
    assert meanwhile.exit()
    assert world.runs().keys() == {0, 1, 2}


def test_trials_that_others_ended_earlier_and_did_not_log_are_logged_at_the_end(
    world: _World,
) -> None:
    worker = world.worker()
    worker.run()
    worker.go_on(30.0)
    number = world.unseen(seconds_ago=25.0)
    assert worker.exit()
    assert world.runs().keys() == {0, number}


def test_a_study_in_memory_is_compared_only_at_the_end(world: _World) -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(value=3.0))
    worker = world.worker(study)
    worker.run()
    worker.go_on(60.0)
    assert world.searches == 0
    study.tell(study.ask(), 1.0)
    study.ask()
    began = world.clock.monotonic()
    assert worker.exit()
    assert world.runs().keys() == {0, 1, 2}
    assert world.clock.monotonic() - began < 1.0
    searches = world.searches
    assert worker.exit()
    assert world.searches == searches


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_exception_that_ends_a_study_in_memory_leaves_a_failed_run(
    world: _World, error: type[BaseException]
) -> None:
    worker = world.worker(optuna.create_study())
    worker.run()

    def objective(trial: optuna.Trial) -> float:
        raise error

    with pytest.raises(error), worker.callback:
        worker.study.optimize(objective, 1, callbacks=[worker.callback])
    assert {n: run.status for n, run in world.runs().items()} == {0: "FINISHED", 1: "FAILED"}


# --- how runs end ------------------------------------------------------------------------------


def test_runs_end_as_the_storage_says_and_running_trials_are_skipped(world: _World) -> None:
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
    for state in states:
        world.unseen(state)
    worker = world.worker()
    worker.run()
    assert worker.exit()
    statuses = {number: run.status for number, run in world.runs().items()}
    assert statuses == {0: "FINISHED", 1: "KILLED", 2: "FAILED", 4: "FINISHED"}


def test_a_run_whose_process_died_is_completed_if_the_storage_says_how_its_trial_ended(
    world: _World,
) -> None:
    victim = world.worker()
    trials = [victim.study.ask() for _ in range(2)]
    for trial in trials:
        victim.callback.run(trial).set_tags({"seen": "running"})
    victim.study.tell(trials[0], 1.0)
    victim.die()
    worker = world.worker()
    worker.run()
    worker.go_on(30.0)
    complete, running = (world.runs()[number] for number in range(2))
    assert (complete.status, complete.curve("value")) == ("FINISHED", [(0, 1.0)])
    assert "mlflow_iap.ended" not in complete.tags
    assert running.status == "FAILED"
    assert "mlflow_iap.ended" in running.tags
    assert complete.tags["seen"] == running.tags["seen"] == "running"


def test_a_run_that_its_user_deleted_is_left_alone(
    world: _World, caplog: pytest.LogCaptureFixture
) -> None:
    first = world.worker()
    first.run(2)
    assert first.exit()
    world.runs()[0].is_deleted = True
    second = world.worker()
    second.run()
    second.go_on(30.0)
    assert second.exit()
    assert world.runs().keys() == {1, 2}
    assert said_by_us(caplog) == []


# --- servers and storages that do not respond --------------------------------------------------


def test_a_study_is_compared_once_an_unreachable_server_is_back(world: _World) -> None:
    number = world.unseen()
    worker = world.worker(create_experiment=False)
    world.server.is_away = True
    worker.run()
    worker.go_on(300.0)
    began = world.clock.monotonic()
    assert not worker.exit()
    assert world.clock.monotonic() - began < 10.0
    assert world.searches == 0
    world.server.is_away = False
    worker.go_on(120.0)
    assert world.runs().keys() == {number, 1}


def test_a_search_that_fails_is_repeated_a_minute_later(world: _World) -> None:
    number = world.unseen()
    worker = world.worker()
    worker.run()
    world.server.drop("search_runs")
    world.server.add_experiment("mine")
    worker.go_on(30.0)
    assert world.runs().keys() == {1}
    worker.go_on(60.0)
    assert world.runs().keys() == {number, 1}


def test_a_study_that_is_gone_from_its_storage_delays_nothing_and_causes_no_warning(
    world: _World, caplog: pytest.LogCaptureFixture
) -> None:
    world.unseen()
    worker = world.worker()
    worker.run()
    optuna.delete_study(study_name="mine", storage=worker.study._storage)
    assert worker.exit()
    worker.go_on(60.0)
    assert said_by_us(caplog) == []


# --- the thread --------------------------------------------------------------------------------


def test_earlier_trials_are_read_at_once_by_a_thread_that_ends_with_the_process(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.unseen()
    worker = world.worker()
    comparer = Comparer(world.clock)
    monkeypatch.setattr(callback_module, "comparer", comparer)
    read: list[int] = []
    get_trials = worker.study.get_trials

    def reading(*args: Any, **options: Any) -> list[FrozenTrial]:
        read.append(1)
        return get_trials(*args, **options)

    study_run = worker.callback._run_of_study(worker.study)
    monkeypatch.setattr(study_run.study, "get_trials", reading)
    thread = comparer._thread
    assert thread is not None
    assert thread.daemon
    wait_until(lambda: comparer._shared[study_run].before is not None, "the thread reads")
    world.clock.advance(20.0)
    wait_until(lambda: [number for number, _ in study_run.logged] == [0], "the thread compares")
    comparer.compare_at_exit(Deadline(world.clock.monotonic, 10.0))
    thread.join(30.0)
    assert not thread.is_alive()


def test_a_forked_process_compares_only_the_studies_that_it_joins_itself(world: _World) -> None:
    worker = world.worker()
    worker.run()
    comparer = worker.comparer
    assert list(comparer._shared)
    comparer._pid = -1  # as in a fork
    comparer.compare_in_time(Deadline(world.clock.monotonic, 30.0))
    assert not list(comparer._shared)
    number = world.unseen()
    worker.run()
    assert worker.exit()
    assert number in world.runs()


def test_a_study_in_memory_is_not_kept_alive(world: _World) -> None:
    worker = world.worker(optuna.create_study())
    worker.run()
    assert len(worker.comparer._in_memory) == 1
    worker.callback._reset()
    assert len(worker.comparer._in_memory) == 0
