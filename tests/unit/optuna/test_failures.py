"""Why trials failed, according to Optuna's log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

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
    failure = failures.last_failure(1, time.time())
    assert failure is not None
    assert failure.reason == "ValueError: odd"
    assert failure.traceback is not None
    assert failure.traceback.startswith("Traceback (most recent call last):")
    assert failure.traceback.endswith("ValueError: odd\n")
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


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (float("nan"), "The value nan is not acceptable"),
        (None, "The value None could not be cast to float"),
        ("odd", "The value 'o' could not be cast to float"),
        ((1.0, 2.0), "The number of the values 2 did not match the number of the objectives 1"),
    ],
)
def test_a_trial_that_fails_because_of_what_it_returns_has_a_reason_without_a_traceback(
    returned: Any, reason: str
) -> None:
    new_study().optimize(lambda trial: returned, 1)
    failure = failures.last_failure(0, time.time())
    assert failure is not None
    assert failure.reason.startswith(reason)
    assert failure.traceback is None


@contextmanager
def _settings(way: str) -> Iterator[None]:
    logger = logging.getLogger("optuna.study._optimize")
    handlers, verbosity = logging.getLogger("optuna").handlers[:], optuna.logging.get_verbosity()
    try:
        if way == "dictConfig":
            # As it does with all loggers that it is not given.
            logging.getLogger("optuna").handlers.clear()
            logger.disabled = True
        elif way == "set_verbosity":
            optuna.logging.set_verbosity(optuna.logging.ERROR)
        else:
            logging.disable(logging.CRITICAL)
        yield
    finally:
        logging.disable(logging.NOTSET)
        optuna.logging.set_verbosity(verbosity)
        logging.getLogger("optuna").handlers[:] = handlers
        logger.disabled = False


@pytest.mark.parametrize("way", ["dictConfig", "set_verbosity", "disable"])
def test_a_failure_is_known_even_if_the_user_silences_optunas_log_which_stays_silent(
    way: str,
) -> None:
    written = StringIO()
    handler = logging.StreamHandler(written)
    optuna_logger = logging.getLogger("optuna")
    with _settings(way):
        optuna_logger.addHandler(handler)
        _fail("odd")
    optuna_logger.removeHandler(handler)
    failure = failures.last_failure(0, time.time())
    assert failure is not None
    assert failure.reason == "ValueError: odd"
    assert written.getvalue() == ""


def test_listening_does_not_change_what_optuna_writes() -> None:
    written = StringIO()
    handler = logging.StreamHandler(written)
    optuna_logger = logging.getLogger("optuna")
    optuna_logger.addHandler(handler)
    failures.listen()
    failures.listen()
    try:
        _fail("odd")
    finally:
        optuna_logger.removeHandler(handler)
    assert written.getvalue().startswith("Trial 0 failed with parameters: {}")
    assert written.getvalue().count("Trial 0 failed") == 2


def test_a_failure_is_logged_as_an_artifact_and_its_last_line_as_a_tag() -> None:
    run = RecordingRun()
    try:
        raise ZeroDivisionError("by hand")
    except ZeroDivisionError as error:
        failures.log_failure(run, failures.Failure.of(error))
    assert run.tags == {"error": "ZeroDivisionError: by hand"}
    assert run.artifacts["traceback.txt"].endswith(b"ZeroDivisionError: by hand\n")
