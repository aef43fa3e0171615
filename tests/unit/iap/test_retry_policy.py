"""How often and how long an attempt is repeated, on a clock that the test moves."""

from __future__ import annotations

import pytest

from mlflow_iap_callbacks import IAPConfigurationError
from mlflow_iap_callbacks.iap.retry_policy import RetryPolicy, TryAgain
from virtual_time import VirtualTime


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


class _Attempts:
    """Attempts that each request another one, counted and timed."""

    def __init__(
        self, time: VirtualTime, after: float | None = None, *, is_free: bool = False
    ) -> None:
        self.times: list[float] = []
        self._time = time
        self._after = after
        self._is_free = is_free

    def __call__(self) -> int:
        self.times.append(self._time.now)
        raise TryAgain(len(self.times), self._after, is_free=self._is_free)


def test_an_attempt_is_repeated_until_it_returns(time: VirtualTime) -> None:
    outcomes = iter((TryAgain("a", 0.0), TryAgain("b", 0.0), "done"))

    def attempt() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, TryAgain):
            raise outcome
        return outcome

    assert time.policy()(attempt) == "done"


@pytest.mark.parametrize("attempts", [1, 3])
def test_the_last_outcome_is_what_the_caller_gets(time: VirtualTime, attempts: int) -> None:
    assert time.policy(attempts)(_Attempts(time, 0.0)) == attempts


def test_an_error_as_outcome_is_raised(time: VirtualTime) -> None:
    def attempt() -> None:
        raise TryAgain(KeyError("x"), 0.0)

    with pytest.raises(KeyError):
        time.policy(2)(attempt)


def test_other_errors_end_the_attempts_at_once(time: VirtualTime) -> None:
    made: list[int] = []

    def attempt() -> None:
        made.append(1)
        raise LookupError

    with pytest.raises(LookupError):
        time.policy()(attempt)
    assert len(made) == 1


def test_no_attempt_begins_after_the_deadline(time: VirtualTime) -> None:
    ends = time.now + 30.0
    attempts = _Attempts(time)
    time.policy(100, deadline=30.0)(attempts)
    assert len(attempts.times) >= 4
    assert attempts.times[-1] < ends
    assert time.now == attempts.times[-1]


def test_the_default_number_of_attempts_lasts_two_minutes(time: VirtualTime) -> None:
    began = time.now
    attempts = _Attempts(time)
    time.policy()(attempts)
    assert 90.0 < attempts.times[-1] - began < 120.0


def test_waits_grow_to_twenty_seconds_unless_an_attempt_sets_them(time: VirtualTime) -> None:
    time.policy(deadline=1000.0)(_Attempts(time))
    assert 0.25 <= time.waits[0] <= 0.5
    assert 20.0 <= time.waits[-1] <= 20.25
    assert time.waits[:7] == sorted(time.waits[:7])
    time.waits.clear()
    time.policy(3)(_Attempts(time, 7.0))
    assert time.waits == [7.0, 7.0]


def test_no_wait_begins_that_would_end_after_the_deadline(time: VirtualTime) -> None:
    attempts = _Attempts(time, after=3600.0)
    time.policy()(attempts)
    assert (len(attempts.times), time.waits) == (1, [])


def test_a_free_attempt_does_not_count_but_its_time_does(time: VirtualTime) -> None:
    attempts = _Attempts(time, 1.0, is_free=True)
    time.policy(1, deadline=10.0)(attempts)
    assert len(attempts.times) == 10


def test_a_policy_inside_another_one_ends_at_its_deadline(time: VirtualTime) -> None:
    ends = time.now + 30.0
    inner = _Attempts(time, 1.0)

    def outer() -> None:
        time.policy(100, deadline=100.0)(inner)
        raise TryAgain(None, 1.0)

    time.policy(100, deadline=30.0)(outer)
    assert inner.times[-1] < ends


@pytest.mark.parametrize("seconds", [70.0, 300.0])
def test_an_upload_that_takes_longer_than_the_deadline_has_one_more_attempt(
    time: VirtualTime, seconds: float
) -> None:
    began: list[float] = []

    def upload() -> None:
        began.append(time.now)
        if len(began) > 1:  # the first response asks for a token
            time.now += seconds
        again = TryAgain(None, 0.0, is_free=True)
        again.is_upload = True
        raise again

    time.policy()(upload)
    assert len(began) == 3


def test_other_attempts_that_take_longer_than_the_deadline_have_no_more(time: VirtualTime) -> None:
    began: list[float] = []

    def attempt() -> None:
        began.append(time.now)
        time.now += 300.0
        raise TryAgain(None, 0.0)

    time.policy()(attempt)
    assert len(began) == 1


@pytest.mark.parametrize("settings", [{"max_attempts": 0}, {"deadline": 0.0}, {"deadline": -1.0}])
def test_a_policy_that_would_never_send_is_an_error(settings: dict[str, float]) -> None:
    with pytest.raises(IAPConfigurationError, match="never send"):
        RetryPolicy(**settings)  # type: ignore[arg-type]
