"""Keys of studies and trials: the same in all processes, and different for all others."""

from __future__ import annotations

import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import create_trial

from mlflow_iap_callbacks.optuna.study_key import is_in, study_key, trial_key


def _shared(path: Path) -> optuna.storages.BaseStorage:
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def test_a_study_that_another_process_loads_has_the_same_key(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="mine", storage=_shared(tmp_path / "journal"))
    study.add_trial(create_trial(value=1.0))
    study.add_trial(create_trial(value=2.0))
    again = optuna.load_study(study_name="mine", storage=_shared(tmp_path / "journal"))
    assert study_key(study) == study_key(again)


def test_a_key_does_not_depend_on_the_time_zone_of_the_machine(tmp_path: Path) -> None:
    keys = set()
    trial = create_trial(value=1.0)
    assert trial.datetime_start is not None
    for number, hours in enumerate((0, -8, 5.75)):
        study = optuna.create_study(study_name="mine", storage=_shared(tmp_path / f"{number}"))
        trial.datetime_start += timedelta(hours=hours)
        study.add_trial(trial)
        keys.add(study_key(study))
    assert len(keys) == 1


def test_studies_with_the_same_name_that_began_at_different_times_have_different_keys(
    tmp_path: Path,
) -> None:
    keys = set()
    for number in range(3):
        study = optuna.create_study(study_name="mine", storage=_shared(tmp_path / f"{number}"))
        study.add_trial(create_trial(value=1.0))
        keys.add(study_key(study))
    assert len(keys) == 3


def test_studies_in_memory_that_began_at_the_same_time_have_different_keys() -> None:
    first = create_trial(value=1.0)
    keys = set()
    for _ in range(3):
        study = optuna.create_study(study_name="mine")
        study.add_trial(first)
        keys.add(study_key(study))
    assert len(keys) == 3


def test_a_study_in_memory_keeps_its_key_after_pickling_and_with_more_trials() -> None:
    study = optuna.create_study(study_name="mine")
    study.add_trial(create_trial(value=1.0))
    key = study_key(study)
    again = pickle.loads(pickle.dumps(study))
    again.add_trial(create_trial(value=1.0))
    assert study_key(again) == study_key(study) == key


def test_a_waiting_trial_without_a_start_does_not_matter() -> None:
    study = optuna.create_study(study_name="mine")
    study.enqueue_trial({"x": 1})
    assert len(study_key(study)) == 16


def test_a_key_does_not_depend_on_the_trials_that_the_study_s_object_shows() -> None:
    class Step(optuna.Study):
        def get_trials(self, *_: Any, **__: Any) -> list[optuna.trial.FrozenTrial]:
            return []

    study = optuna.create_study(study_name="mine")
    study.add_trial(create_trial(value=1.0))
    step = Step("mine", study._storage)
    assert study_key(step) == study_key(study)


def test_the_key_of_a_trial_is_the_same_in_the_objective_and_afterwards() -> None:
    keys: list[str] = []

    def objective(trial: optuna.Trial) -> float:
        keys.append(trial_key("k", trial))
        return 1.0

    study = optuna.create_study()
    study.optimize(objective, 2)
    assert keys == [trial_key("k", trial) for trial in study.trials]


def test_trials_with_the_same_number_that_began_at_different_times_have_different_keys() -> None:
    one, other = create_trial(value=1.0), create_trial(value=1.0)
    one.number = other.number = 3
    assert one.datetime_start is not None
    other.datetime_start = one.datetime_start + timedelta(microseconds=1)
    assert trial_key("k", one) != trial_key("k", other)
    other.datetime_start = one.datetime_start - timedelta(hours=5.75)
    assert trial_key("k", one) == trial_key("k", other)


def test_a_trial_is_in_the_study_that_has_it_with_the_same_number_and_start() -> None:
    study, other = optuna.create_study(), optuna.create_study()
    for each in (study, other):
        each.add_trial(create_trial(value=1.0))
    assert is_in(study, study.trials[0])
    assert not is_in(study, other.trials[0])
    assert not is_in(study, create_trial(value=1.0))
    study.add_trial(create_trial(value=2.0))
    assert not is_in(other, study.trials[1])
