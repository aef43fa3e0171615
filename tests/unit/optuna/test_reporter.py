"""When studies are reported, on a clock that the test moves, without a server."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mlflow_iap_callbacks.delivery.closing import Deadline
from mlflow_iap_callbacks.optuna import background_thread
from mlflow_iap_callbacks.optuna.plot_process import OutOfTime, PlotProcess
from mlflow_iap_callbacks.optuna.reporter import (
    DRAW_EVERY,
    DRAW_QUICK_EVERY,
    MOST_SHARE,
    REPORT_EVERY,
    Reporter,
)
from mlflow_iap_callbacks.optuna.study_run import StudyRun
from own_log import said_by_us
from waiting import wait_until


class _Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class _Reporter(Reporter):
    """A reporter whose ticks the test calls."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__(clock)
        self.clock = clock

    def _start(self) -> None:
        self._thread = cast(Any, "no thread")

    def _do_in_thread(self, work: Callable[[], None], deadline: Deadline, seconds: float) -> None:
        work()

    def exit(self, seconds: float) -> None:
        deadline = Deadline(self.clock, seconds)
        self.end(deadline)
        self.draw_at_exit(deadline)

    def go_on(self, seconds: float, tick: float = 0.5) -> None:
        ends = self.clock.seconds + seconds
        while self.clock.seconds < ends:
            self.clock.seconds = min(self.clock.seconds + tick, ends)
            self.tick()


class _Study:
    """Notes what the reporter calls on a study's run, and when."""

    def __init__(
        self,
        clock: _Clock,
        *,
        report_takes: float = 0.0,
        draw_takes: float = 0.0,
        quick_takes: float = 0.0,
        has_run: bool = True,
    ) -> None:
        self.asked: list[tuple[str, float]] = []
        self.sessions_left = 0
        self.writer = "a run" if has_run else None
        storage = SimpleNamespace(remove_session=self._leave)
        self.study = SimpleNamespace(study_name="mine", _storage=storage)
        self._clock = clock
        self._takes = {"report": report_takes, "draw": draw_takes, "draw quickly": quick_takes}
        self.links = 0

    def report(self) -> None:
        self._note("report")

    def draw(
        self, process: PlotProcess, time_left: Callable[[], float], *, is_quick: bool = False
    ) -> None:
        self._note("draw quickly" if is_quick else "draw")
        if time_left() <= 0:
            raise OutOfTime

    def show_link(self) -> None:
        self.links += 1

    def times(self, kind: str) -> list[float]:
        return [seconds for each, seconds in self.asked if each == kind]

    def run(self) -> StudyRun:
        return cast(StudyRun, self)

    def _note(self, kind: str) -> None:
        self.asked.append((kind, self._clock.seconds))
        self._clock.seconds += self._takes[kind]

    def _leave(self) -> None:
        self.sessions_left += 1


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def reporter(clock: _Clock) -> _Reporter:
    return _Reporter(clock)


def _change_always(reporter: _Reporter, study: _Study, seconds: float) -> None:
    """Report a change at each tick, as if trials ended all the time."""
    ends = reporter.clock.seconds + seconds
    while reporter.clock.seconds < ends:
        reporter.changed(study.run())
        reporter.go_on(0.5)


def test_the_first_report_comes_30_seconds_after_the_first_trial(
    reporter: _Reporter, clock: _Clock
) -> None:
    clock.seconds = 1000.0
    study = _Study(clock)
    reporter.changed(study.run())
    reporter.go_on(REPORT_EVERY - 0.5)
    assert not study.asked
    reporter.go_on(0.5)
    assert study.asked == [("report", 1000.0 + REPORT_EVERY)]


def test_an_unchanged_study_is_not_reported_again(reporter: _Reporter, clock: _Clock) -> None:
    study = _Study(clock)
    reporter.changed(study.run())
    reporter.go_on(2 * REPORT_EVERY)
    assert study.times("report") == [REPORT_EVERY]
    reporter.changed(study.run())
    reporter.go_on(REPORT_EVERY)
    assert study.times("report") == [REPORT_EVERY, 3 * REPORT_EVERY]


def test_a_busy_study_is_reported_every_30_seconds_and_drawn_every_10_minutes(
    reporter: _Reporter, clock: _Clock
) -> None:
    study = _Study(clock)
    _change_always(reporter, study, 2 * DRAW_EVERY)
    assert study.times("report") == [REPORT_EVERY * number for number in range(1, 41)]
    assert study.times("draw") == [DRAW_EVERY, 2 * DRAW_EVERY]


def test_quick_plots_are_drawn_every_minute_unless_all_are(
    reporter: _Reporter, clock: _Clock
) -> None:
    study = _Study(clock)
    _change_always(reporter, study, 2 * DRAW_EVERY)
    minutes = [seconds / DRAW_QUICK_EVERY for seconds in study.times("draw quickly")]
    assert minutes == [*range(1, 10), *range(11, 20)]


def test_quick_plots_of_an_unchanged_study_are_not_drawn_again(
    reporter: _Reporter, clock: _Clock
) -> None:
    study = _Study(clock)
    reporter.changed(study.run())
    reporter.go_on(DRAW_EVERY)
    assert study.times("draw quickly") == [DRAW_QUICK_EVERY]
    assert study.times("draw") == [DRAW_EVERY]


def test_quick_plots_that_are_slow_are_drawn_less_often(reporter: _Reporter, clock: _Clock) -> None:
    study = _Study(clock, quick_takes=4.0)
    _change_always(reporter, study, 500.0)
    first, second, third = study.times("draw quickly")
    assert second - first == third - second == 4.0 + 4.0 / MOST_SHARE


@pytest.mark.parametrize("seconds", [0.5, 3.0, 20.0])
def test_reports_take_no_more_than_their_share_of_the_time(
    reporter: _Reporter, clock: _Clock, seconds: float
) -> None:
    study = _Study(clock, report_takes=seconds)
    _change_always(reporter, study, 5000.0)
    starts = study.times("report")
    rest = max(REPORT_EVERY, seconds / MOST_SHARE)
    assert len(starts) == 1 + (5000.0 - REPORT_EVERY) // (seconds + rest)
    assert all(b - a >= seconds + rest for a, b in itertools.pairwise(starts))


def test_plots_take_no_more_than_their_share_and_do_not_delay_reports(
    reporter: _Reporter, clock: _Clock
) -> None:
    takes = 60.0
    study = _Study(clock, draw_takes=takes)
    _change_always(reporter, study, 4500.0)
    first, second = study.times("draw")
    assert first == DRAW_EVERY
    assert second == first + takes + takes / MOST_SHARE
    between = [seconds for seconds in study.times("report") if first < seconds < second]
    assert between[0] <= first + takes + REPORT_EVERY
    assert len(between) == takes / MOST_SHARE // REPORT_EVERY


def test_links_are_shown_at_each_tick_until_the_study_is_drawn(
    reporter: _Reporter, clock: _Clock
) -> None:
    study = _Study(clock)
    reporter.changed(study.run())
    reporter.go_on(5.0)
    assert study.links == 10
    reporter.exit(60.0)
    links = study.links
    reporter.go_on(5.0)
    assert study.links == links


def test_a_study_without_a_run_is_not_reported(reporter: _Reporter, clock: _Clock) -> None:
    study = _Study(clock, has_run=False)
    reporter.changed(study.run())
    reporter.exit(60.0)
    assert not study.asked


def test_only_the_chosen_studies_are_reported(reporter: _Reporter, clock: _Clock) -> None:
    studies = [_Study(clock), _Study(clock)]
    for study in studies:
        reporter.changed(study.run())
    reporter.report(only=[studies[1].run()])
    reporter.draw_in_time(Deadline(clock, 60.0), only=[studies[1].run()])
    assert [study.asked for study in studies] == [[], [("report", 0.0), ("draw", 0.0)]]
    reporter.report()
    assert [len(study.asked) for study in studies] == [1, 2]


def test_closing_reports_the_studies_that_there_was_no_time_to_draw(
    reporter: _Reporter, clock: _Clock, caplog: pytest.LogCaptureFixture
) -> None:
    drawn_in_time, of_another = _Study(clock), _Study(clock)
    drawn_too_late = _Study(clock, draw_takes=80.0)
    for study in (drawn_too_late, drawn_in_time, of_another):
        reporter.changed(study.run())
    closed = [drawn_in_time.run(), drawn_too_late.run()]
    reporter.draw_at_close(Deadline(clock, 60.0), closed)
    (message,) = said_by_us(caplog)
    assert "no time to draw all plots of 1 study" in message
    reporter.draw_at_close(Deadline(clock, 100.0), closed)
    assert said_by_us(caplog) == [message]
    assert drawn_in_time.times("draw") == [0.0]
    assert drawn_too_late.times("draw") == [0.0, 80.0]
    assert not of_another.asked


def test_an_error_is_a_warning_and_the_other_studies_are_reported(
    reporter: _Reporter, clock: _Clock, caplog: pytest.LogCaptureFixture
) -> None:
    class _Broken(_Study):
        def report(self) -> None:
            raise OSError("database is locked")

    studies = [_Broken(clock), _Study(clock)]
    for study in studies:
        reporter.changed(study.run())
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"):
        reporter.report()
    (message,) = said_by_us(caplog)
    assert "the state of study 'mine' (database is locked)" in message
    assert studies[1].times("report") == [0.0]
    assert [study.sessions_left for study in studies] == [1, 1]


# at the end of the process


@pytest.mark.parametrize(
    ("seconds", "asked"),
    [(10.0, ["report", "draw"]), (9.9, ["report"])],
)
def test_at_exit_there_is_a_last_report_and_there_are_plots_if_time_is_left(
    reporter: _Reporter, clock: _Clock, seconds: float, asked: list[str]
) -> None:
    study = _Study(clock)
    reporter.changed(study.run())
    reporter.exit(seconds)
    assert [kind for kind, _ in study.asked] == asked
    reporter.exit(30.0)
    assert len(study.asked) == len(asked)


def test_at_exit_the_studies_that_changed_last_are_drawn_first_and_the_rest_is_reported(
    reporter: _Reporter, clock: _Clock, caplog: pytest.LogCaptureFixture
) -> None:
    studies = [_Study(clock, draw_takes=7.0) for _ in range(20)]
    for study in [*studies, studies[3]]:
        reporter.changed(study.run())
    reporter.exit(30.0)
    drawn = [number for number, study in enumerate(studies) if study.times("draw")]
    assert drawn == [3, 18, 19]
    assert all(study.times("report") for study in studies)
    (report,) = said_by_us(caplog)
    assert report.startswith("The plots of 17 studies were not updated")


def test_plots_that_take_too_long_are_abandoned_and_reported(
    reporter: _Reporter, clock: _Clock, caplog: pytest.LogCaptureFixture
) -> None:
    study = _Study(clock, draw_takes=40.0)
    reporter.changed(study.run())
    reporter.exit(30.0)
    assert said_by_us(caplog)[0].startswith("The plots of 1 study were not updated")


def test_a_full_disk_is_a_warning_if_there_is_no_room_for_plots(
    reporter: _Reporter,
    clock: _Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/no-folder-can-be-made-here")
    study = _Study(clock)
    reporter.changed(study.run())
    reporter.exit(30.0)
    assert study.times("report") == [0.0]
    assert said_by_us(caplog)[0].startswith("Could not log the plots of studies")


def test_plots_in_progress_are_abandoned_when_the_process_exits_and_drawn_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background_thread, "_TICK", 0.01)
    clock, drawings = _Clock(), []
    reporter = Reporter(clock)

    class _Slow(_Study):
        def draw(
            self, process: PlotProcess, time_left: Callable[[], float], *, is_quick: bool = False
        ) -> None:
            drawings.append("begun")
            if len(drawings) == 1:
                wait_until(lambda: time_left() <= 0, "the drawing is given up")
                raise OutOfTime

    study = _Slow(clock)
    reporter.changed(study.run())
    clock.seconds = DRAW_EVERY
    wait_until(lambda: bool(drawings), "the thread draws")
    reporter.changed(study.run())
    reporter.end(Deadline(clock, 30.0))
    assert study.times("report")[-1] == DRAW_EVERY
    assert reporter.draw_in_time(Deadline(clock, 30.0)) == 0
    assert drawings == ["begun", "begun"]


def test_a_storage_that_does_not_respond_delays_the_exit_by_at_most_half_of_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background_thread, "_TICK", 0.01)
    answers = threading.Event()

    class _Hanging(_Study):
        def report(self) -> None:
            answers.wait(60.0)

    reporter = Reporter()
    reporter.changed(_Hanging(_Clock()).run())
    deadline = Deadline(time.monotonic, 1.0)
    reporter.end(deadline)
    assert deadline.left <= 0.5
    assert not answers.is_set()
    answers.set()


def _in_a_fork(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a forked process."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def send(connection: Connection) -> None:
        connection.send(work())

    process = context.Process(target=send, args=(there,))
    process.start()
    assert here.poll(30.0), "the process has not answered"
    found = here.recv()
    process.join(30.0)
    assert process.exitcode == 0
    return found


def test_a_worker_reports_at_exit_but_does_not_draw(reporter: _Reporter, clock: _Clock) -> None:
    def work() -> list[tuple[str, float]]:
        study = _Study(clock)
        reporter.changed(study.run())
        reporter.exit(30.0)
        return study.asked

    assert _in_a_fork(work) == [("report", 0.0)]


def test_a_forked_process_leaves_its_parents_studies_to_the_parent(
    reporter: _Reporter, clock: _Clock
) -> None:
    parents = _Study(clock)
    reporter.changed(parents.run())

    def work_nothing() -> list[tuple[str, float]]:
        reporter.exit(30.0)
        return parents.asked

    def work() -> list[list[tuple[str, float]]]:
        own = _Study(clock)
        reporter.changed(own.run())
        reporter.go_on(REPORT_EVERY)
        reporter.exit(30.0)
        return [parents.asked, own.asked]

    assert _in_a_fork(work_nothing) == []
    assert _in_a_fork(work) == [[], [("report", REPORT_EVERY)]]
    reporter.exit(30.0)
    assert [kind for kind, _ in parents.asked] == ["report", "draw"]


# the thread


def test_the_first_change_starts_a_thread_that_ends_with_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background_thread, "_TICK", 0.01)
    clock = _Clock()
    reporter = Reporter(clock)
    study = _Study(clock)
    reporter.changed(study.run())
    thread = reporter._thread
    assert thread is not None
    assert thread.daemon
    clock.seconds = REPORT_EVERY
    wait_until(lambda: study.times("report") == [REPORT_EVERY], "the thread reports")
    reporter.changed(study.run())
    assert reporter._thread is thread
    reporter.draw_at_exit(Deadline(clock, 0.0))
    thread.join(30.0)
    assert not thread.is_alive()
