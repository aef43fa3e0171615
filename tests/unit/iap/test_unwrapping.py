"""Extracting this package's errors from MLflow's."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_iap_callbacks import IAPConfigurationError, IAPMlflowClient, IAPRefusedError
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


# --- warnings --------------------------------------------------------------------------------

_NAMES = [
    name
    for name, method in inspect.getmembers(MlflowClient, inspect.isfunction)
    # The two methods of its own call MLflow's.
    if not name.startswith("_") and name not in ("create_run", "log_batch")
]


class _Reached(Exception):
    pass


def _warns_at_its_start(function: Any) -> Callable[[Any, str, Any], None]:
    """Return a profile function that makes a function warn about its call, and end."""

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is function.__code__:
            warnings.warn("deprecated", FutureWarning, stacklevel=3)  # 1: here, 2: the function
            raise _Reached

    return profile


def _of_calls(warned: Iterable[warnings.WarningMessage]) -> list[warnings.WarningMessage]:
    # What other tests left may be garbage by now, and warn too.
    return [each for each in warned if each.category is FutureWarning]


@pytest.mark.parametrize("name", _NAMES)
def test_a_warning_of_a_method_of_mlflow_points_at_the_line_that_calls_the_method(
    name: str,
) -> None:
    method = getattr(IAPMlflowClient("https://mlflow.example"), name)
    parameters = inspect.signature(method).parameters.values()
    required = {each.name: None for each in parameters if each.default is each.empty}
    sys.setprofile(_warns_at_its_start(getattr(MlflowClient, name)))
    with pytest.warns(FutureWarning, match="deprecated") as warned, pytest.raises(_Reached):
        method(**required)
    assert [each.filename for each in _of_calls(warned)] == [__file__]


@pytest.mark.parametrize("argument", ["request_id", "experiment_ids"])
def test_a_warning_about_a_deprecated_argument_points_at_the_line_that_passes_it(
    argument: str,
) -> None:
    client = IAPMlflowClient("https://mlflow.example")
    method = client.get_trace if argument == "request_id" else client.search_traces
    line = inspect.currentframe().f_lineno + 2  # type: ignore[union-attr]
    with pytest.warns(FutureWarning, match=argument) as warned, pytest.raises(TypeError):
        method(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, **{argument: 1})
    assert {(each.filename, each.lineno) for each in _of_calls(warned)} == {(__file__, line)}
