"""Decides what an error means for a delivery: wait, give up or retry."""

from __future__ import annotations

import json
import re

import requests
from mlflow.exceptions import MlflowException, RestException

from ..errors import IAPError
from ..iap.passwords import without_passwords

_REFUSED = frozenset(
    {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"}
)
# Errors before the request is sent: a missing file, a number that is out of bounds.
_NO_REQUEST = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError),
    *(ArithmeticError, RecursionError, TypeError, ValueError),
)
# MLflow's client raises the same error when it rejects something itself and when a server or a
# bucket does. In the second case, the message quotes the response after these words.
_ANSWERS = ("API request to", "The following failures occurred")
# SQLAlchemy's message when the server is busy. MLflow reports it as an error of the client.
_NO_CONNECTION = ("QueuePool limit", "BAD_REQUEST: QueuePool limit")
_REFUSED_STATUS = frozenset({400, 404, 413})


class NotYet(Exception):
    """The run cannot be delivered yet, although the server works.

    Args:
        why: what the run waits for, shown by `mlflow-iap status`.
        after: seconds until the next try; None for increasing delays.
        is_overtaken: whether another journal's records of the same run need not wait: they may
            contain what this one waits for.
    """

    def __init__(self, why: str, after: float | None = None, *, is_overtaken: bool = False) -> None:
        super().__init__(why)
        self.after = after
        self.is_overtaken = is_overtaken


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without passwords and quoted web pages."""
    return re.split(r"\. Response body:|\n", without_passwords(str(error)))[0]


def refusal(error: Exception) -> str | None:
    """Return why MLflow permanently rejects a request; None if a retry may succeed."""
    why = _refusal(error)
    return None if why is None else without_passwords(why)


def _refusal(error: Exception) -> str | None:
    if isinstance(error, IAPError | NotYet):
        return None
    if isinstance(error, MlflowException):
        if str(error.message).startswith(_NO_CONNECTION):
            return None
        is_by_client = error.error_code == "INTERNAL_ERROR" and _is_without_request(error)
        return str(error.message) if error.error_code in _REFUSED or is_by_client else None
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return str(error) if error.response.status_code in _REFUSED_STATUS else None
    # A web page instead of JSON means that MLflow did not respond.
    if isinstance(error, requests.RequestException | json.JSONDecodeError):
        return None
    # MLflow's RunStatus raises a plain Exception. A malformed response may raise a LookupError.
    is_no_request = isinstance(error, _NO_REQUEST) or type(error) is Exception
    return f"{type(error).__name__}: {error}" if is_no_request else None


def _is_without_request(error: MlflowException) -> bool:
    return (
        not isinstance(error, RestException)
        and error.__context__ is None
        and error.__cause__ is None
        and not str(error.message).startswith(_ANSWERS)
    )
