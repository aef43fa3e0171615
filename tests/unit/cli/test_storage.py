"""``mlflow-iap sync --storage`` with a storage in a file and an MLflow server in memory."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click
import optuna
import pytest
from click.testing import CliRunner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from fake_mlflow import FakeRun
from inline_delivery import InlineDelivery
from mlflow_iap_callbacks import IAPMLflowCallback
from mlflow_iap_callbacks.cli.commands import main
from mlflow_iap_callbacks.cli.storage import sync_storage
from optuna_helpers import STUDY_TAG, TRIAL_TAG

_URL = "studies"  # a journal is created sooner than a database


@pytest.fixture
def delivery() -> InlineDelivery:
    return InlineDelivery(has_files=True)


def _study(name: str = "mine") -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(_URL))
    return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)


def _add_unseen(study: optuna.Study, *states: TrialState) -> None:
    """Add trials whose processes died before they had called the callback."""
    for state in states:
        trial = create_trial(state=state, value=2.0 if state == TrialState.COMPLETE else None)
        assert trial.datetime_start is not None
        trial.datetime_start -= timedelta(hours=1)
        if state.is_finished():
            trial.datetime_complete = trial.datetime_start + timedelta(minutes=1)
        study.add_trial(trial)


def _logged(delivery: InlineDelivery, **options: Any) -> optuna.Study:
    """A study with two ended trials, of which only one is logged."""
    study = _study()
    callback = IAPMLflowCallback(client=delivery.client, **options)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), 1, callbacks=[callback])
    assert not callback.flush().waiting
    _add_unseen(study, TrialState.COMPLETE)
    return study


def _sync(
    delivery: InlineDelivery,
    capsys: pytest.CaptureFixture[str],
    name: str | None = None,
    **options: Any,
) -> tuple[int, list[str]]:
    """Return the command's result, and the lines that it prints."""
    capsys.readouterr()
    left = sync_storage(_URL, name, client=delivery.client, **{"dry_run": False, **options})
    return left, capsys.readouterr().out.splitlines()


def _trial_runs(delivery: InlineDelivery, experiment: str) -> dict[int, FakeRun]:
    experiments = {each.name: i for i, each in delivery.server.experiments.items()}
    found = [
        run
        for run in delivery.runs()
        if TRIAL_TAG in run.tags and run.experiment_id == experiments.get(experiment)
    ]
    by_number = {int(run.tags[TRIAL_TAG]): run for run in found}
    assert len(by_number) == len(found)
    return by_number


def test_trials_missing_in_mlflow_are_logged_and_counted(
    delivery: InlineDelivery, capsys: pytest.CaptureFixture[str]
) -> None:
    study = _study()
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
    _add_unseen(study, *states)
    said = ["study 'mine': 3 logged, 1 still running"]
    assert _sync(delivery, capsys) == (0, said)
    statuses = {n: run.status for n, run in _trial_runs(delivery, "mine").items()}
    assert statuses == {0: "FINISHED", 1: "KILLED", 2: "FAILED"}
    (own,) = [run for run in delivery.runs() if TRIAL_TAG not in run.tags]
    assert {run.tags[STUDY_TAG] for run in delivery.runs()} == {own.tags[STUDY_TAG]}


def test_nothing_is_written_if_no_trial_is_missing(
    delivery: InlineDelivery, capsys: pytest.CaptureFixture[str]
) -> None:
    _logged(delivery)
    assert _sync(delivery, capsys)[1] == ["study 'mine': 1 logged, 1 already in MLflow"]
    calls = list(delivery.server.calls)
    assert _sync(delivery, capsys) == (0, ["study 'mine': 2 already in MLflow"])
    asked = delivery.server.calls[len(calls) :]
    assert [call for call in asked if not call.startswith(("get_", "search_"))] == []


def test_a_dry_run_says_what_would_be_logged_and_logs_nothing(
    delivery: InlineDelivery, capsys: pytest.CaptureFixture[str]
) -> None:
    _logged(delivery)
    runs = len(delivery.runs())
    said = ["study 'mine': 1 to log, 1 already in MLflow"]
    assert _sync(delivery, capsys, dry_run=True) == (0, said)
    assert len(delivery.runs()) == runs


@pytest.mark.parametrize("study_run", [True, False])
def test_trials_are_logged_to_the_experiment_of_their_study_whatever_its_name(
    delivery: InlineDelivery, capsys: pytest.CaptureFixture[str], study_run: bool
) -> None:
    _logged(delivery, experiment_name="team", study_run=study_run)
    assert _sync(delivery, capsys)[0] == 0
    runs = _trial_runs(delivery, "team")
    assert runs.keys() == {0, 1}
    assert "mine" not in {each.name for each in delivery.server.experiments.values()}
    parents = [run for run in delivery.runs() if TRIAL_TAG not in run.tags]
    assert len(parents) == study_run
    assert len({run.tags.get("mlflow.parentRunId") for run in runs.values()}) == 1


def test_all_studies_of_the_storage_are_logged_unless_a_study_is_given(
    delivery: InlineDelivery, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        _add_unseen(_study(name), TrialState.COMPLETE)
    _study("not begun")
    assert _sync(delivery, capsys, "second")[1] == ["study 'second': 1 logged"]
    assert _sync(delivery, capsys)[1] == [
        "study 'first': 1 logged",
        "study 'not begun': no trial has ended",
        "study 'second': 1 already in MLflow",
    ]


def test_a_trial_that_cannot_be_delivered_is_logged_by_the_next_call(
    delivery: InlineDelivery, capsys: pytest.CaptureFixture[str]
) -> None:
    _logged(delivery)
    delivery.server.drop("create_run", times=1000)
    left, said = _sync(delivery, capsys)
    assert left == 1
    assert said[-1] == "study 'mine': 1 already in MLflow, 1 not sent yet (run this command again)"
    delivery.server.clear_faults()
    assert _sync(delivery, capsys)[0] == 0
    assert _trial_runs(delivery, "mine").keys() == {0, 1}


def test_an_unreachable_server_is_an_error_without_a_traceback(
    delivery: InlineDelivery, capsys: pytest.CaptureFixture[str]
) -> None:
    _logged(delivery)
    delivery.server.is_away = True
    with pytest.raises(click.ClickException, match="The server is away"):
        _sync(delivery, capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--storage", "sqlite:///none.db"], "Error: There is no file 'none.db'. Check the path"),
        (["--study", "mine"], "Error: --study needs --storage."),
        (["--storage", _URL, "--refused"], "Error: --refused is for journals."),
    ],
)
def test_an_error_of_the_command_says_what_to_do(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    done = CliRunner().invoke(main, ["sync", *arguments])
    assert done.exit_code != 0
    assert said in done.output
