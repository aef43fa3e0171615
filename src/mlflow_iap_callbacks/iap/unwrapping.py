"""Extracts this package's errors from the errors in which MLflow wraps them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from mlflow.exceptions import MlflowException

from ..errors import IAPError
from .secret_removal import remove_secrets

_Function = TypeVar("_Function", bound=Callable[..., Any])


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


def unwrapping(function: _Function) -> _Function:
    """Decorate a function of MLflow with ``unwrapped_errors``.

    Its warnings still point at the line that calls it.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with unwrapped_errors():
            return function(*args, **kwargs)

    # `warnings` skips the frames of files with `importlib` and `_bootstrap` in their names.
    code = call.__code__  # type: ignore[attr-defined]
    call.__code__ = code.replace(  # type: ignore[attr-defined]
        co_filename=f"<{__name__}, as importlib._bootstrap>"
    )
    return cast(_Function, call)
