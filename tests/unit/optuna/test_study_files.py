"""The table of a study's trials, and the file from which the study is resumed."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from mlflow_iap_callbacks.optuna.packed_study import packed
from mlflow_iap_callbacks.optuna.study_files import write_study, write_table
from optuna_helpers import new_study

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def _content(study: optuna.Study, *names: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(packed(study, names))
    return content


def _objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    kind = trial.suggest_categorical("kind", ["a", "b", None])
    trial.suggest_int("depth", 1, 64, log=True)
    trial.report(x, 3)
    trial.set_user_attr("scores", {"auc": [x, x]})
    if trial.number == 2:
        raise optuna.TrialPruned
    if trial.number == 3:
        raise ValueError
    return x + (kind == "a")


@pytest.fixture
def study() -> optuna.Study:
    study = new_study("maximize")
    study.set_user_attr("data", "iris")
    study.set_metric_names(["score"])
    study.optimize(_objective, 6, catch=ValueError)
    return study


def _resumed(study: optuna.Study, folder: Path, **options: Any) -> optuna.Study:
    path = folder / "study.log"
    write_study(_content(study, "score"), path)
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name=study.study_name, storage=storage, **options)


def test_a_study_is_resumed_from_its_file_where_it_ended(
    study: optuna.Study, tmp_path: Path
) -> None:
    study.enqueue_trial({"x": 0.25})
    again = _resumed(study, tmp_path)
    assert again.directions == study.directions
    assert (again.user_attrs, again.metric_names) == ({"data": "iris"}, ["score"])
    for before, after in zip(study.trials, again.trials, strict=True):
        before._trial_id = after._trial_id
        assert after == before
    again.optimize(_objective, 2)
    assert [trial.number for trial in again.trials] == list(range(8))
    assert again.trials[6].params["x"] == 0.25
    assert again.best_value >= study.best_value


def test_a_sampler_learns_from_the_trials_of_a_resumed_study(
    study: optuna.Study, tmp_path: Path
) -> None:
    def next_params(study: optuna.Study) -> dict[str, Any]:
        study.sampler = optuna.samplers.TPESampler(seed=1, n_startup_trials=1)
        trial = study.ask()
        _objective(trial)
        return trial.params

    again = _resumed(study, tmp_path)
    assert next_params(again) == next_params(study)


def test_a_trial_that_was_running_has_failed_in_the_resumed_study(
    study: optuna.Study, tmp_path: Path
) -> None:
    study.ask()
    again = _resumed(study, tmp_path)
    assert again.trials[-1].state == TrialState.FAIL
    again.optimize(_objective, 1)
    assert again.trials[-1].number == 7


def test_several_objectives_and_constraints_survive(tmp_path: Path) -> None:
    study = new_study("minimize", "maximize")
    for value, constraint in ((1.0, 0.0), (math.inf, 1.0)):
        study.add_trial(
            create_trial(values=[value, 2.0], system_attrs={"constraints": [constraint]})
        )
    again = _resumed(study, tmp_path)
    assert [trial.values for trial in again.trials] == [[1.0, 2.0], [math.inf, 2.0]]
    assert [trial.number for trial in again.best_trials] == [0]


def test_the_table_has_a_row_for_each_trial(tmp_path: Path) -> None:
    study = new_study()
    study.add_trial(
        create_trial(
            params={"i": 3},
            distributions={"i": optuna.distributions.IntDistribution(1, 9)},
            value=1.5,
            user_attrs={"note": "a,b\n0", "scores": {"a": 1}},
        )
    )
    study.add_trial(create_trial(state=TrialState.PRUNED))
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.ask()
    study.enqueue_trial({"x": 1})
    write_table(_content(study, "loss"), tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING"]
    assert [row["number"] for row in rows] == list("01234")
    assert [row["loss"] for row in rows] == ["1.5", "", "", "", ""]
    assert (rows[0]["params_i"], rows[0]["user_attrs_note"]) == ("3", "a,b\n0")
    assert rows[0]["user_attrs_scores"] == "{'a': 1}"
    began = study.trials[3].datetime_start
    assert began is not None
    assert [row["start"] for row in rows[3:]] == [began.isoformat(), ""]
    assert [row["complete"] for row in rows[3:]] == ["", ""]
