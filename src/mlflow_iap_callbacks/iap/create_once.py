"""Creates something exactly once, even if responses are lost: it is found by its key."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import requests
from mlflow.exceptions import MlflowException

from ..errors import IAPUnknownOutcomeError
from .retry_policy import RetryPolicy, TryAgain

T = TypeVar("T")

# Seconds within which a server may still create a run after the connection to it broke.
_PATIENCE = 10.0


def create_once(create: Callable[[bool], T], find: Callable[[], T | None], retry: RetryPolicy) -> T:
    """Call ``create`` until it is known that it took effect, and return what it created.

    Args:
        create: creates it; the argument is whether that was requested before.
        find: looks it up, after the response to a request was lost.
        retry: how often and for how long.
    """
    lost: IAPUnknownOutcomeError | None = None
    patience_ends = 0.0  # until then the server may still create it

    def attempt() -> T:
        nonlocal lost, patience_ends
        if lost is not None:
            try:
                found = find()
            except (MlflowException, requests.RequestException):
                raise TryAgain(lost) from None
            if found is not None:
                return found
            if retry.clock() < patience_ends:
                raise TryAgain(lost, is_free=True)
        try:
            return create(lost is not None)
        except IAPUnknownOutcomeError as error:
            longest = retry.deadline / 2
            seconds = longest if error.is_under_way else min(_PATIENCE, longest)
            patience_ends = retry.clock() + seconds
            lost = error
            raise TryAgain(error, error.retry_after) from None

    return retry(attempt)
