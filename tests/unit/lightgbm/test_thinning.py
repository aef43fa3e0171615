"""Which points of a long curve are logged, while it grows and at its end."""

from __future__ import annotations

import pytest

from mlflow_iap_callbacks.lightgbm.thinning import Thinning

_LENGTHS = (1, 2, 3, 10, 50, 99, 1000, 30_000)


@pytest.mark.parametrize("most", [1, 2, 3, 8, 48, 98, 998])
@pytest.mark.parametrize("longest", [1, 2, 50, 1000, 30_000, 2_000_000])
def test_a_curve_of_any_length_has_almost_as_many_points_as_it_may_have(
    longest: int, most: int
) -> None:
    for length in filter(lambda length: length <= longest, _LENGTHS):
        thinning: Thinning[int] = Thinning(longest, most)
        at_once = [position for position in range(length) if thinning.is_next(position)]
        assert at_once == [position for position in range(length) if thinning.is_logged(position)]
        points = [*at_once, *thinning.rest()]
        assert len(set(points)) == len(points)
        assert {0, length - 1} <= set(points)
        assert 0.9 * min(length, most) <= len(points) <= most + 1


@pytest.mark.parametrize("most", [None, 10])
def test_a_curve_that_is_short_enough_is_logged_while_it_grows(most: int | None) -> None:
    thinning: Thinning[int] = Thinning(10, most)
    assert all(map(thinning.is_next, range(10)))
    assert thinning.rest() == []


def test_a_curve_that_has_ended_has_no_points_left() -> None:
    thinning: Thinning[int] = Thinning(1000, 5)
    for position in range(100):
        thinning.is_next(position)
    assert thinning.rest()
    assert thinning.rest() == []
