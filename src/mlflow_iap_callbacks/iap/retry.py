"""What is tried again, and for how long. The only module that knows tenacity."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import tenacity

from ..errors import IAPConfigurationError

T = TypeVar("T")

_backoff = tenacity.wait_exponential(multiplier=0.25, max=20.0) + tenacity.wait_random(0.0, 0.25)
_ends: ContextVar[float] = ContextVar("ends", default=float("inf"))


class TryAgain(Exception, Generic[T]):
    """Raised by an attempt that is worth repeating.

    Args:
        outcome: what the caller gets when no attempt is left: a value, or an error to raise.
        after: seconds to wait before the next attempt; None for the policy's own waiting.
        is_free: whether the attempt does not count, since it was no fault of the server's.
    """

    def __init__(
        self, outcome: T | Exception, after: float | None = None, *, is_free: bool = False
    ) -> None:
        super().__init__()
        self.outcome = outcome
        self.after = after
        self.is_free = is_free


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and for how long in all.

    Args:
        max_attempts: at least 1. The default outlasts the deadline unless answers come at once.
        deadline: seconds from the first attempt after which none is begun. The default is longer
            than the restart of an App Engine instance; MLflow's own retries give up after about
            four minutes.

    A policy that runs inside another's attempt ends with that one: deadlines never add up.

    Raises:
        IAPConfigurationError: a number is too small.
    """

    max_attempts: int = 12
    deadline: float = 120.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.deadline <= 0:
            raise IAPConfigurationError(
                f"max_attempts={self.max_attempts}, deadline={self.deadline} would never send a "
                "request. Give at least 1 attempt and more than 0 seconds."
            )

    def __call__(self, attempt: Callable[[], T]) -> T:
        """Run ``attempt`` until it returns, raises anything but TryAgain, or time is up."""
        ends = min(_ends.get(), time.monotonic() + self.deadline)
        mark = _ends.set(ends)
        free = 0

        def is_over(state: tenacity.RetryCallState) -> bool:
            nonlocal free
            free += _again(state).is_free
            is_late = time.monotonic() + state.upcoming_sleep >= ends
            return is_late or state.attempt_number - free >= self.max_attempts

        try:
            retrying = tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(TryAgain),
                wait=_wait,
                stop=is_over,
                retry_error_callback=_give_up,
            )
            return retrying(attempt)
        finally:
            _ends.reset(mark)


def seconds_left() -> float:
    """Seconds until the running policy's deadline; infinite outside of one."""
    return _ends.get() - time.monotonic()


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
