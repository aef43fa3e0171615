"""Logging errors become warnings; other exceptions are raised."""

from __future__ import annotations

import logging

import pytest

from mlflow_iap_callbacks.delivery.never_raising import never_raising
from own_log import said_by_us


def test_an_error_becomes_a_warning_that_says_what_is_missing_and_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "mlflow_iap_callbacks"), never_raising("trial 3"):
        raise OSError("disk full")
    assert said_by_us(caplog) == [
        "Could not log trial 3 (disk full). The program continues without it."
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_exceptions_that_end_the_program_are_raised(error: type[BaseException]) -> None:
    with pytest.raises(error), never_raising("trial 3"):
        raise error


def test_without_an_error_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with never_raising("trial 3"):
        pass
    assert not said_by_us(caplog)
