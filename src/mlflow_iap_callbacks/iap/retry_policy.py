"""``RetryPolicy``: how often and for how long an attempt is repeated. Uses tenacity."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import tenacity

from ..errors import IAPConfigurationError

T = TypeVar("T")

BUSY = (408, 429, 500, 502, 503, 504)  # HTTP statuses after which a later attempt may succeed

_backoff = tenacity.wait_exponential(multiplier=0.25, max=20.0) + tenacity.wait_random(0.0, 0.25)
_ends: ContextVar[float] = ContextVar("ends", default=float("inf"))


class TryAgain(Exception, Generic[T]):
    """An attempt raises this to request another one.

    Args:
        outcome: the result if no attempt is left: a value to return or an error to raise.
        after: seconds to wait before the next attempt. Default: exponential backoff with jitter.
        is_free: True if the attempt does not count, because the server did not fail.

    Attributes:
        is_upload: True if the attempt sent a file. If that took longer than the deadline, there is
            one more attempt.
    """

    is_upload = False

    def __init__(
        self, outcome: T | Exception, after: float | None = None, *, is_free: bool = False
    ) -> None:
        super().__init__()
        self.outcome = outcome
        self.after = after
        self.is_free = is_free


@dataclass(frozen=True)
class RetryPolicy:
    """The number of attempts, and the time for all of them.

    A policy that runs inside another one's attempt ends with it, so deadlines never add up. No
    deadline cuts an attempt short: a slow server is waited for.

    Args:
        max_attempts: at least 1. The default is enough for the whole deadline, unless the server
            fails immediately each time.
        deadline: seconds after the start of the first attempt; no attempt begins later. The default
            is longer than the restart of an App Engine instance; MLflow's own retries last four
            minutes.
    """

    max_attempts: int = 12
    deadline: float = 120.0

    # For tests, which move time themselves.
    clock = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.deadline <= 0:
            raise IAPConfigurationError(
                f"max_attempts={self.max_attempts}, deadline={self.deadline} would never send a "
                "request. Use at least 1 attempt and more than 0 seconds."
            )

    def __call__(self, attempt: Callable[[], T]) -> T:
        """Run ``attempt`` until it returns, raises anything but TryAgain, or no attempt is left."""
        ends = min(_ends.get(), self.clock() + self.deadline)
        mark = _ends.set(ends)
        free = 0
        began = self.clock()
        has_more = True  # whether an upload that takes long may be repeated after the deadline

        def timed() -> T:
            nonlocal began
            began = self.clock()
            return attempt()

        def is_over(state: tenacity.RetryCallState) -> bool:
            nonlocal free, has_more
            free += _again(state).is_free
            is_late = self.clock() + state.upcoming_sleep >= ends
            is_long = self.clock() - began >= self.deadline / 2 > state.upcoming_sleep
            if is_long and has_more and _again(state).is_upload:
                is_late = has_more = False
            return is_late or state.attempt_number - free >= self.max_attempts

        try:
            retrying = tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(TryAgain),
                wait=_wait,
                stop=is_over,
                sleep=self.sleep,
                retry_error_callback=_give_up,
            )
            return retrying(timed)
        finally:
            _ends.reset(mark)


def _wait(state: tenacity.RetryCallState) -> float:
    asked = _again(state).after
    return _backoff(state) if asked is None else asked


def _give_up(state: tenacity.RetryCallState) -> Any:
    again = _again(state)
    if isinstance(again.outcome, Exception):
        raise again.outcome
    return again.outcome


def _again(state: tenacity.RetryCallState) -> TryAgain[Any]:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TryAgain)  # noqa: S101
    return error
