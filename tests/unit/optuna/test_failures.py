"""Why trials failed, according to Optuna's log."""

from __future__ import annotations

import logging
import threading
import time

import optuna
import pytest

from mlflow_iap_callbacks.optuna import failures
from optuna_helpers import new_study
from recording_run import RecordingRun


@pytest.fixture(autouse=True)
def _listening() -> None:
    failures.listen()
    failures._last.__dict__.clear()


def _fail(text: str, number_of_trials: int = 1) -> None:
    def objective(trial: optuna.Trial) -> float:
        raise ValueError(text)

    new_study().optimize(objective, number_of_trials, catch=ValueError)


def test_the_traceback_is_that_of_the_trial_that_failed_last() -> None:
    _fail("odd", 2)
    text = failures.last_failure(1, time.time())
    assert text is not None
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("ValueError: odd\n")
    assert failures.last_failure(0, time.time()) is None


def test_an_old_failure_belongs_to_another_trial() -> None:
    _fail("odd")
    assert failures.last_failure(0, time.time() - 100.0) is None
    assert failures.last_failure(0, time.time() + 100.0) is None


def test_a_failure_belongs_to_its_thread() -> None:
    thread = threading.Thread(target=_fail, args=("odd",))
    thread.start()
    thread.join(30.0)
    assert failures.last_failure(0, time.time()) is None


def test_a_trial_that_fails_without_an_exception_has_no_traceback() -> None:
    new_study().optimize(lambda trial: float("nan"), 1)
    assert failures.last_failure(0, time.time()) is None


def test_listening_twice_has_no_further_effect() -> None:
    before = len(logging.getLogger("optuna").handlers)
    failures.listen()
    assert len(logging.getLogger("optuna").handlers) == before


def test_a_failure_is_logged_as_an_artifact_and_its_last_line_as_a_tag() -> None:
    run = RecordingRun()
    try:
        raise ZeroDivisionError("by hand")
    except ZeroDivisionError as error:
        failures.log_failure(run, failures.traceback_of(error))
    assert run.tags == {"error": "ZeroDivisionError: by hand"}
    assert run.artifacts["traceback.txt"].endswith(b"ZeroDivisionError: by hand\n")
