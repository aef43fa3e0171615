"""Extracts this package's errors from the errors in which MLflow wraps them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

from ..errors import IAPError
from .secret_removal import remove_secrets


@contextmanager
def unwrapped_errors() -> Iterator[None]:
    """Raise the IAPError that led to an MlflowException, found as its ``__context__``.

    No error that is raised shows a token, a key or a password.
    """
    handled = sys.exc_info()[1]  # the caller's, in the context of everything raised here
    try:
        yield
    except Exception as error:
        remove_secrets(error, handled)
        inner: BaseException | None = error
        while inner not in (None, handled) and not isinstance(inner, IAPError):
            inner = inner.__context__
        if inner in (None, handled, error) or not isinstance(error, MlflowException):
            raise
        raise inner from None
