"""The run of a study: what it contains, and how it continues after its end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from inline_delivery import InlineDelivery
from mlflow_iap_callbacks.optuna.plot_process import OutOfTime, PlotProcess
from mlflow_iap_callbacks.optuna.study_run import StudyRun
from optuna_helpers import Direction, new_study
from own_log import said_by_us
from recording_run import RecordingRun
from waiting import wait_until

_BEGAN = datetime(2026, 1, 2, 3, 4, 5)
_FEASIBLE, _INFEASIBLE = (0.0, -1.0), (0.0, 0.5)


pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def delivery() -> InlineDelivery:
    return InlineDelivery()


def _study_run(study: optuna.Study, delivery: InlineDelivery, **options: Any) -> StudyRun:
    given: dict[str, Any] = {"metric_name": None, "tags": {}, "has_run": True, **options}
    return StudyRun(study, "key", delivery.client, "name:mine", **given)


def _trial(
    *values: float,
    state: TrialState = TrialState.COMPLETE,
    minutes: float = 0.0,
    constraints: Sequence[float] = (),
    **params: int,
) -> FrozenTrial:
    """A trial that ended this many minutes after the start."""
    trial = create_trial(
        state=state,
        values=values or None,
        params=params,
        distributions={n: optuna.distributions.IntDistribution(0, 100) for n in params},
        system_attrs={"constraints": constraints} if constraints else None,
    )
    trial.datetime_start = _BEGAN
    trial.datetime_complete = _BEGAN + timedelta(minutes=minutes)
    return trial


def _study_of(*trials: FrozenTrial, directions: Sequence[Direction] = ("minimize",)) -> Any:
    study = new_study(*directions)
    study.add_trials(trials)
    return study


def test_the_run_has_the_studys_name_and_describes_the_study(delivery: InlineDelivery) -> None:
    study = new_study("maximize", pruner=optuna.pruners.HyperbandPruner())
    study.set_user_attr("dataset", "iris")
    study_run = _study_run(study, delivery, tags={"team": "x"})
    study_run.report()
    run = delivery.run()
    assert run.name == study.study_name
    expected = {
        "study_name": study.study_name,
        "direction": "MAXIMIZE",
        "sampler": "RandomSampler",
        "pruner": "HyperbandPruner",
        "storage": "InMemoryStorage",
        "optuna_version": optuna.__version__,
        "team": "x",
        "dataset": "iris",
        "mlflow_iap.study": "key",
    }
    assert expected.items() <= run.tags.items()


def test_trials_are_counted_by_state(delivery: InlineDelivery) -> None:
    study = _study_of(
        _trial(3.0),
        _trial(1.0),
        _trial(state=TrialState.PRUNED),
        _trial(state=TrialState.FAIL),
        _trial(state=TrialState.FAIL),
    )
    study.ask()
    study.enqueue_trial({"x": 1})
    study_run = _study_run(study, delivery)
    study_run.report()
    counts = {"complete": 2, "pruned": 1, "fail": 2, "running": 1, "waiting": 1}
    run = delivery.run()
    for state, count in counts.items():
        assert run.curve(f"trials.{state}") == [(5, float(count))]
    assert study_run.counts() == {state.upper(): count for state, count in counts.items()}


@pytest.mark.parametrize(
    ("direction", "values", "best"),
    [
        ("minimize", [3.0, 5.0, 1.0, 1.0, 2.0], [3.0, 3.0, 1.0, 1.0, 1.0]),
        ("maximize", [3.0, 5.0, 1.0, 5.0, 6.0], [3.0, 5.0, 5.0, 5.0, 6.0]),
        ("minimize", [float("inf"), 2.0, float("-inf")], [float("inf"), 2.0, float("-inf")]),
    ],
)
def test_the_best_value_so_far_is_a_curve_by_trial(
    delivery: InlineDelivery, direction: Direction, values: list[float], best: list[float]
) -> None:
    study = _study_of(
        *(_trial(value, minutes=n) for n, value in enumerate(values)), directions=[direction]
    )
    _study_run(study, delivery).report()
    run = delivery.run()
    assert run.curve("best_value_so_far") == list(enumerate(best))
    moments = [moment for name, _, moment, _ in run.points if name == "best_value_so_far"]
    began = int(_BEGAN.timestamp() * 1000)
    assert moments == [began + 60_000 * number for number in range(len(values))]


def test_the_curve_is_in_the_order_in_which_trials_ended(delivery: InlineDelivery) -> None:
    study = _study_of(
        _trial(2.0, minutes=9), _trial(3.0, minutes=1), _trial(4.0, minutes=5), _trial(1.0)
    )
    _study_run(study, delivery).report()
    assert delivery.run().curve("best_value_so_far") == [(3, 1.0), (1, 1.0), (2, 1.0), (0, 1.0)]


def test_the_first_of_equally_good_trials_is_the_best_and_its_params_are_tags(
    delivery: InlineDelivery,
) -> None:
    study = _study_of(_trial(2.0, depth=1), _trial(1.0, depth=2), _trial(1.0, minutes=1, depth=3))
    study_run = _study_run(study, delivery)
    study_run.report()
    run = delivery.run()
    assert (run.tags["best_trial"], run.tags["best_params.depth"]) == ("1", "2")
    assert run.curve("best_value") == [(3, 1.0)]
    assert study_run.best() == "trial 1: value 1"


def test_incomplete_and_infeasible_trials_are_never_the_best(
    delivery: InlineDelivery,
) -> None:
    study = _study_of(
        _trial(5.0, constraints=_FEASIBLE),
        _trial(0.0, constraints=_INFEASIBLE),
        _trial(-1.0, state=TrialState.PRUNED, constraints=_FEASIBLE),
    )
    _study_run(study, delivery).report()
    assert delivery.run().curve("best_value_so_far") == [(0, 5.0)]
    assert delivery.run().tags["best_trial"] == "0"


def test_a_study_without_a_complete_trial_has_no_best(delivery: InlineDelivery) -> None:
    study_run = _study_run(_study_of(_trial(state=TrialState.FAIL)), delivery)
    study_run.report()
    run = delivery.run()
    assert not [name for name, *_ in run.points if name.startswith("best")]
    assert "best_trial" not in run.tags
    assert study_run.best() == ""


def test_a_second_report_adds_only_the_new_trials(delivery: InlineDelivery) -> None:
    study = _study_of(_trial(3.0), _trial(2.0, minutes=1))
    study_run = _study_run(study, delivery)
    study_run.writer = run = RecordingRun()
    study_run.report()
    study.add_trial(_trial(1.0, minutes=2))
    study_run.report()
    assert run.curve("best_value_so_far") == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert run.curve("trials.complete") == [(2, 2.0), (3, 3.0)]


@pytest.mark.parametrize(
    ("metric_name", "own", "expected"),
    [(None, None, "value"), (None, ["loss"], "loss"), ("mine", ["loss"], "mine")],
)
def test_the_best_value_has_the_name_of_the_objective_value(
    delivery: InlineDelivery, metric_name: str | None, own: list[str] | None, expected: str
) -> None:
    study = _study_of(_trial(1.0))
    if own is not None:
        study.set_metric_names(own)
    _study_run(study, delivery, metric_name=metric_name).report()
    names = {name for name, *_ in delivery.run().points if name.startswith("best")}
    assert names == {f"best_{expected}", f"best_{expected}_so_far"}


def test_several_objectives_have_a_pareto_front(delivery: InlineDelivery) -> None:
    study = _study_of(
        _trial(1.0, 5.0), _trial(2.0, 6.0), _trial(5.0, 1.0), directions=["minimize", "minimize"]
    )
    study_run = _study_run(study, delivery)
    study_run.report()
    run = delivery.run()
    assert run.curve("trials.pareto") == [(3, 2.0)]
    assert run.tags["best_trials"] == "[0, 2]"
    assert run.tags["direction"] == "['MINIMIZE', 'MINIMIZE']"
    assert study_run.best() == "2 trials on the Pareto front"
    assert "best_value" not in {name for name, *_ in run.points}


def test_a_study_without_a_run_logs_nothing(delivery: InlineDelivery) -> None:
    study_run = _study_run(_study_of(_trial(1.0)), delivery, has_run=False)
    study_run.report()
    with PlotProcess() as process:
        study_run.draw(process, lambda: 60.0)
    study_run.show_link()
    study_run.close()
    assert delivery.runs() == []


# the end, and after it


def test_a_closed_run_is_reopened_by_the_next_report_and_ends_at_exit(
    delivery: InlineDelivery,
) -> None:
    study = _study_of(_trial(1.0))
    study_run = _study_run(study, delivery)
    study_run.report()
    assert delivery.run().status == "RUNNING"
    study_run.close()
    assert delivery.run().status == "FINISHED"
    study.add_trial(_trial(0.5, minutes=1))
    study_run.report()
    assert delivery.run().status == "RUNNING"
    delivery.sender.end_open_runs()
    assert delivery.run().status == "FINISHED"


class _SlowStudy:
    """Delays the first report on a study, and counts the reports."""

    def __init__(self, study_run: StudyRun) -> None:
        self.begun = 0
        self.is_reached, self.may_go_on = threading.Event(), threading.Event()
        self._get, self._lock = study_run.study.get_trials, study_run._lock
        study_run.study.get_trials = self._get_trials  # type: ignore
        study_run._lock = self  # type: ignore[assignment]

    def acquire(self, **options: Any) -> bool:
        self.begun += 1
        return self._lock.acquire(**options)

    def release(self) -> None:
        self._lock.release()

    def _get_trials(self, **options: Any) -> list[FrozenTrial]:
        trials = self._get(**options)
        if not self.is_reached.is_set():
            self.is_reached.set()
            assert self.may_go_on.wait(30.0)
        return trials


def _start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_report_during_another_one_is_not_skipped(
    delivery: InlineDelivery,
) -> None:
    study = _study_of(_trial(1.0))
    study_run = _study_run(study, delivery)
    slow = _SlowStudy(study_run)
    first = _start(study_run.report)
    assert slow.is_reached.wait(30.0)  # with one trial
    study.add_trial(_trial(0.5, minutes=1))
    last = _start(study_run.report)
    wait_until(lambda: slow.begun == 2, "the second report")
    slow.may_go_on.set()
    for thread in (first, last):
        thread.join(30.0)
    assert delivery.run().curve("trials.complete") == [(1, 1.0), (2, 2.0)]


# the page


def _description(delivery: InlineDelivery) -> str:
    return delivery.run().tags["mlflow.note.content"]


def test_the_description_begins_with_the_best_trial_and_links_to_all(
    delivery: InlineDelivery,
) -> None:
    study = _study_of(_trial(0.25, depth=3), _trial(0.5), _trial(state=TrialState.FAIL))
    study_run = _study_run(study, delivery)
    delivery.run()
    study_run.report()
    run = delivery.run()
    best, counts, links, table = _description(delivery).split("\n\n")
    assert best.startswith("**Best: trial 0, value 0.25**")
    assert counts == "3 trials: 2 complete, 1 fail"
    at = f"#/experiments/{run.experiment_id}/runs?viewStateShareKey=key&"
    assert f"]({at}workflowType=machine_learning)" in links
    assert table.splitlines() == ["| param | value |", "| --- | --- |", "| depth | 3 |"]


def test_the_description_of_a_reopened_run_keeps_its_links(delivery: InlineDelivery) -> None:
    study = _study_of(_trial(0.25))
    study_run = _study_run(study, delivery)
    delivery.run()
    study_run.report()
    study_run.close()
    experiment_id = delivery.run().experiment_id
    study.add_trial(_trial(0.1, minutes=1))
    study_run.report()
    assert f"](#/experiments/{experiment_id}/runs" in _description(delivery)
    assert _description(delivery).startswith("**Best: trial 1")


def test_the_description_begins_with_the_given_one_and_follows_the_study(
    delivery: InlineDelivery,
) -> None:
    study = _study_of(_trial(state=TrialState.FAIL))
    study_run = _study_run(study, delivery, tags={"mlflow.note.content": "of mine"})
    study_run.report()
    assert _description(delivery).startswith("of mine\n\n**No complete trial yet**")
    study.add_trial(_trial(0.5))
    study_run.report()
    assert _description(delivery).startswith("of mine\n\n**Best: trial 1, value 0.5**")


def test_what_somebody_wrote_into_the_description_stays_until_the_study_changes(
    delivery: InlineDelivery,
) -> None:
    study_run = _study_run(_study_of(_trial(0.5)), delivery)
    for _ in range(2):  # the second has the links
        study_run.report()
        delivery.run().tags["mlflow.note.content"] = "edited"
    study_run.report()
    assert _description(delivery) == "edited"


def test_the_experiment_has_a_view_with_the_values_and_params_of_trials(
    delivery: InlineDelivery,
) -> None:
    study = _study_of(_trial(1.0, depth=3), directions=["maximize"])
    study_run = _study_run(study, delivery, metric_name="auc")
    study_run.report()
    study.add_trial(_trial(2.0, leaves=1))
    study_run.report()
    experiment = delivery.server.experiments[delivery.run().experiment_id]
    assert json.loads(experiment.tags["mlflow.sharedViewState.key"]) == {
        "selectedColumns": ["metrics.`auc`", "params.`depth`", "params.`leaves`"],
        "orderByKey": "metrics.`auc`",
        "orderByAsc": False,
    }


class _Process(PlotProcess):
    """Yields what it is given, in place of drawing."""

    def __init__(self, *found: Path | str | type[Exception]) -> None:
        self.found = found

    def draw(self, *_: Any, **__: Any) -> Iterator[Path | str]:
        for each in self.found:
            if isinstance(each, type):
                raise each
            yield each


@pytest.mark.parametrize("is_over", [False, True])
def test_the_files_that_are_drawn_are_logged_and_linked_even_if_time_runs_out(
    delivery_of_files: InlineDelivery, tmp_path: Path, is_over: bool
) -> None:
    study_run = _study_run(_study_of(_trial(1.0)), delivery_of_files)
    study_run.report()
    study_run.close()  # plots are drawn after the run has ended
    delivery_of_files.run()
    paths = [tmp_path / name for name in ("plots.html", "slice.png", "study.log")]
    for path in paths:
        path.write_text(path.name)
    process = _Process(*paths, *([OutOfTime] if is_over else []))
    with pytest.raises(OutOfTime) if is_over else nullcontext():
        study_run.draw(process, lambda: 60.0)
    run = delivery_of_files.run()
    assert run.artifacts == {f"study/{path.name}": path.name.encode() for path in paths}
    text = run.tags["mlflow.note.content"]
    for name in ("plots.html", "slice.png"):
        assert f"/runs/{run.run_id}/artifacts/study/{name}?" in text
    assert f'run_id="{run.run_id}", artifact_path="study/study.log"' in text


def test_what_could_not_be_drawn_is_a_warning_once_and_stays_in_the_description(
    delivery: InlineDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    study = _study_of(_trial(1.0))
    study_run = _study_run(study, delivery)
    for _ in range(2):
        study_run.draw(_Process("There is no slice.png."), lambda: 60.0)
    study_run.report()
    (said,) = said_by_us(caplog)
    assert study.study_name in said
    assert "There is no slice.png." in said
    assert "There is no slice.png." in _description(delivery)


# the link


def _link(delivery: InlineDelivery) -> str:
    run = delivery.run()
    place = f"/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    return f"{delivery.server.uri}{place}?workflowType=machine_learning"


def test_the_link_is_shown_once_as_soon_as_the_run_is_known(
    delivery: InlineDelivery, capsys: pytest.CaptureFixture[str]
) -> None:
    study = _study_of(_trial(1.0))
    study_run = _study_run(study, delivery)
    study_run.show_link()
    assert capsys.readouterr().err == ""
    expected = f"Study {study.study_name}: {_link(delivery)}\n"
    study_run.show_link()
    study_run.show_link()
    shown = capsys.readouterr()
    assert (shown.err, shown.out) == (expected, "")
    assert study_run.link == _link(delivery)


def test_the_link_needs_no_request_which_a_silent_server_would_not_answer(
    delivery: InlineDelivery, capsys: pytest.CaptureFixture[str]
) -> None:
    study_run = _study_run(_study_of(_trial(1.0)), delivery)
    link = _link(delivery)
    del delivery.server.calls[:]
    study_run.show_link()
    assert link in capsys.readouterr().err
    assert delivery.server.calls == []


# storages


def test_the_url_of_a_storage_is_logged_without_its_secrets(
    delivery: InlineDelivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _study_of(_trial(1.0))
    url = "postgresql://me:se%40cret@db.example:5432/optuna?password=secret2&sslpassword=secret3"
    monkeypatch.setattr(study._storage, "url", url, raising=False)
    _study_run(study, delivery)
    tags = delivery.run().tags
    assert tags["storage"] == "postgresql://me:***@db.example:5432/optuna"
    assert not [value for value in tags.values() if "cret" in value]


def test_a_study_in_a_storage_of_several_processes_is_shared_and_its_trials_claimed(
    delivery: InlineDelivery, tmp_path: Path
) -> None:
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    shared = _study_run(optuna.create_study(storage=storage), delivery)
    alone = _study_run(new_study(), delivery)
    assert [(each.is_shared, each.claim.value) for each in (shared, alone)] == [
        (True, "claimed"),
        (False, "new"),
    ]
