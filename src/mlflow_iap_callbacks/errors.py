"""What can go wrong between this machine and an MLflow server behind IAP.

    mlflow.exceptions.MlflowException
    └── IAPError
        ├── IAPConfigurationError     the settings cannot work: no URI, http to a remote host
        ├── IAPCredentialsError       Google gave no token: nothing found, the wrong kind, refused
        ├── IAPRefusedError           IAP answered instead of MLflow; ``reason`` says why
        ├── IAPUnavailableError       Google's front end answered: it reaches no server
        └── IAPUnknownOutcomeError    the answer to a request that must not be sent twice was lost

Each message says what happened and what was found, then what to do next.
"""

from __future__ import annotations

from typing import Literal

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    TEMPORARILY_UNAVAILABLE,
    UNAUTHENTICATED,
)

Reason = Literal["account", "allowlist", "audience", "clock", "role", "setup", "token"]


class IAPError(MlflowException):
    """Base of all errors of this package; also an ``MlflowException``, so that handlers written
    for MLflow go on catching."""

    _error_code = INTERNAL_ERROR

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=self._error_code)


class IAPConfigurationError(IAPError):
    """The settings given cannot work; nothing was sent."""

    _error_code = INVALID_PARAMETER_VALUE


class IAPCredentialsError(IAPError):
    """No token could be had from Google.

    Attributes:
        transient: True when asking again later may help (a token endpoint that is away).
    """

    _error_code = UNAUTHENTICATED

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class IAPRefusedError(IAPError):
    """IAP answered in the place of MLflow.

    Attributes:
        reason: what is the matter: ``role``, ``audience``, ``allowlist``, ``account``, ``token``,
            ``clock`` (this machine's) or ``setup`` (IAP's own).
        status: HTTP status of IAP's answer.
        answer: IAP's own sentence.
    """

    def __init__(
        self, message: str, *, reason: Reason = "setup", status: int = 0, answer: str = ""
    ) -> None:
        self._error_code = PERMISSION_DENIED if reason == "role" else UNAUTHENTICATED
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.answer = answer


class IAPUnavailableError(IAPError):
    """Google's front end answered in the place of MLflow, of which it reached no instance."""

    _error_code = TEMPORARILY_UNAVAILABLE


class IAPUnknownOutcomeError(IAPError):
    """The answer to a request was lost that would do its work twice if it were sent again.

    Attributes:
        is_under_way: True when the server may still be at it: it took too long to answer.
        retry_after: seconds that the server asked to wait; None where it did not.
    """

    def __init__(
        self, message: str, *, is_under_way: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.is_under_way = is_under_way
        self.retry_after = retry_after
