"""Extracting this package's errors from MLflow's."""

from __future__ import annotations

import pytest
from mlflow.exceptions import MlflowException

from mlflow_iap_callbacks import IAPConfigurationError, IAPRefusedError
from mlflow_iap_callbacks.iap.unwrapping import unwrapped_errors


def _fail_as_mlflow_does(error: Exception) -> None:
    """Raise an error as MLflow does: with a text, and without a cause."""
    try:
        raise error
    except type(error) as inner:
        raise MlflowException(f"API request failed: {inner}")  # noqa: B904


def test_this_package_s_error_is_raised_without_the_errors_that_wrap_it() -> None:
    with pytest.raises(IAPRefusedError, match=r"^no role$"), unwrapped_errors():
        _fail_as_mlflow_does(IAPRefusedError("no role"))


def test_mlflow_s_own_errors_stay_as_they_are() -> None:
    with pytest.raises(MlflowException, match="API request failed") as caught, unwrapped_errors():
        _fail_as_mlflow_does(OSError("away"))
    assert type(caught.value) is MlflowException


def test_an_error_that_the_caller_is_handling_is_not_mistaken_for_the_new_one() -> None:
    try:
        raise IAPConfigurationError("the caller's")
    except IAPConfigurationError:
        with pytest.raises(MlflowException) as caught, unwrapped_errors():
            raise MlflowException("new")  # noqa: B904
    assert type(caught.value) is MlflowException


def test_the_context_of_an_error_that_the_caller_is_handling_is_not_mistaken_either() -> None:
    try:
        try:
            raise IAPConfigurationError("the caller's")
        except IAPConfigurationError:
            raise ValueError  # noqa: B904
    except ValueError:
        with pytest.raises(MlflowException) as caught, unwrapped_errors():
            raise MlflowException("new")  # noqa: B904
    assert type(caught.value) is MlflowException
