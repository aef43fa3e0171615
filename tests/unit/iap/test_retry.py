"""How often and how long, with a clock that runs."""

from __future__ import annotations

import time

import pytest

from mlflow_iap_callbacks.iap.retry import RetryPolicy, TryAgain, seconds_left


def test_an_attempt_is_repeated_until_it_returns() -> None:
    outcomes = iter((TryAgain("a", 0.0), TryAgain("b", 0.0), "done"))

    def attempt() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, TryAgain):
            raise outcome
        return outcome

    assert RetryPolicy()(attempt) == "done"


@pytest.mark.parametrize("attempts", [1, 3])
def test_the_last_outcome_is_what_the_caller_gets(attempts: int) -> None:
    made: list[int] = []

    def attempt() -> int:
        made.append(len(made))
        raise TryAgain(made[-1], 0.0)

    assert RetryPolicy(max_attempts=attempts)(attempt) == attempts - 1


def test_an_outcome_that_is_an_error_is_raised() -> None:
    def attempt() -> None:
        raise TryAgain(KeyError("x"), 0.0)

    with pytest.raises(KeyError):
        RetryPolicy(max_attempts=2)(attempt)


def test_other_errors_end_it_at_once() -> None:
    made: list[int] = []

    def attempt() -> None:
        made.append(1)
        raise LookupError

    with pytest.raises(LookupError):
        RetryPolicy()(attempt)
    assert len(made) == 1


def test_no_attempt_begins_behind_the_deadline() -> None:
    began = time.monotonic()
    times: list[float] = []

    def attempt() -> None:
        times.append(time.monotonic() - began)
        raise TryAgain(None)

    RetryPolicy(max_attempts=100, deadline=0.8)(attempt)
    assert len(times) >= 2
    assert times[-1] < 0.8


def test_a_policy_inside_another_ends_with_it() -> None:
    left: list[float] = []

    def inner() -> None:
        left.append(seconds_left())
        raise TryAgain(None, 0.05)

    def outer() -> None:
        RetryPolicy(max_attempts=100, deadline=100.0)(inner)
        raise TryAgain(None, 0.05)

    RetryPolicy(max_attempts=100, deadline=0.5)(outer)
    assert max(left) <= 0.5
    assert seconds_left() == float("inf")
