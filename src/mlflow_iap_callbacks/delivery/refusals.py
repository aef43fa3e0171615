"""What an error means for a delivery: wait, give up, or retry."""

from __future__ import annotations

import requests
from mlflow.exceptions import MlflowException

from ..errors import IAPError

_REFUSED = frozenset(
    {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"}
)
# Errors in making the request: a file that is gone, a number that is out of bounds.
_NO_REQUEST = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError),
    *(OverflowError, TypeError, ValueError),
)
# SQLAlchemy's message of a busy server, which MLflow reports as an error of the client.
_NO_CONNECTION = ("QueuePool limit", "BAD_REQUEST: QueuePool limit")
_REFUSED_STATUS = frozenset({400, 404, 413})


class NotYet(Exception):
    """The run cannot be delivered yet, although the server works.

    Args:
        why: what the run waits for, for `mlflow-iap status`.
        after: seconds until the next try; None for a delay that grows.
    """

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


def refusal(error: Exception) -> str | None:
    """Return why MLflow permanently rejects a request; None if a retry may succeed."""
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
