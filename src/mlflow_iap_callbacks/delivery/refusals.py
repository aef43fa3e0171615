"""What an error of a delivery means: not yet, never, or that it is to be tried again."""

from __future__ import annotations

import requests
from mlflow.exceptions import MlflowException

from ..errors import IAPError

_REFUSED = frozenset(
    {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"}
)
# What no request can be made of: a file that is gone, a number out of bounds.
_NO_REQUEST = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError),
    *(OverflowError, TypeError, ValueError),
)
# SQLAlchemy's words for a server that is busy; MLflow takes them for the client's fault.
_NO_CONNECTION = ("QueuePool limit", "BAD_REQUEST: QueuePool limit")
_REFUSED_STATUS = frozenset({400, 404, 413})


class NotYet(Exception):
    """The run cannot be written to for a while, through no fault of the server's.

    Args:
        why: for who asks what a run waits for.
        after: seconds; None for a while that grows.
    """

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


def refusal(error: Exception) -> str | None:
    """Why MLflow will never take what it was sent; None where it may yet."""
    if isinstance(error, IAPError | NotYet):
        return None
    if isinstance(error, MlflowException):
        if str(error.message).startswith(_NO_CONNECTION):
            return None
        return str(error.message) if error.error_code in _REFUSED else None
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return str(error) if error.response.status_code in _REFUSED_STATUS else None
    if isinstance(error, requests.RequestException):
        return None
    return f"{type(error).__name__}: {error}" if isinstance(error, _NO_REQUEST) else None
