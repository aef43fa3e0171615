"""This package's errors, out of those that MLflow wraps them in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

from ..errors import IAPError


@contextmanager
def unwrapped_errors() -> Iterator[None]:
    """MLflow wraps whatever its transport raises into an MlflowException without a cause."""
    handled = sys.exc_info()[1]  # by the caller, and so no part of what goes wrong here
    try:
        yield
    except MlflowException as error:
        inner: BaseException | None = error
        while inner not in (None, handled) and not isinstance(inner, IAPError):
            inner = inner.__context__
        if inner in (None, handled, error):
            raise
        raise inner from None
