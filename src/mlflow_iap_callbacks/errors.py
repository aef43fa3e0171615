"""The exceptions of this package.

mlflow.exceptions.MlflowException
└── IAPError
    ├── IAPConfigurationError     the settings cannot work: no URI, or http to another machine
    ├── IAPCredentialsError       no token: credentials are missing, of the wrong kind, or rejected
    ├── IAPRefusedError           IAP rejected the request; ``reason`` says why
    ├── IAPUnavailableError       Google's front end could not reach the server
    └── IAPUnknownOutcomeError    the response to a request that cannot be repeated was lost
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
    """Base class of this package's errors. ``except MlflowException`` catches them as well."""

    _error_code = INTERNAL_ERROR

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=self._error_code)


class IAPConfigurationError(IAPError):
    """The given settings cannot work. No request was sent."""

    _error_code = INVALID_PARAMETER_VALUE


class IAPCredentialsError(IAPError):
    """Google issued no token.

    Attributes:
        transient: True if a later attempt may succeed, as after an outage of Google's endpoints.
    """

    _error_code = UNAUTHENTICATED

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class IAPRefusedError(IAPError):
    """IAP rejected the request, so MLflow has not received it.

    Attributes:
        reason: what has to be changed: the ``account``, IAP's ``allowlist``, the ``audience``, this
            machine's ``clock``, the account's ``role``, IAP's own ``setup``, or the ``token``.
        status: HTTP status of IAP's response.
        answer: text of IAP's response.
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
    """Google's front end answered in place of MLflow, because it could not reach the server."""

    _error_code = TEMPORARILY_UNAVAILABLE


class IAPUnknownOutcomeError(IAPError):
    """The response to a request was lost. The request may take effect twice if it is repeated.

    Attributes:
        is_under_way: True if the server may still be working on the request, as after a timeout.
        retry_after: seconds that the server asked to wait before the next request, or None.
    """

    def __init__(
        self, message: str, *, is_under_way: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.is_under_way = is_under_way
        self.retry_after = retry_after
