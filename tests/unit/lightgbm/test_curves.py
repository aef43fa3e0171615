"""The logged metrics, point by point, for each form of LightGBM's evaluation results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightgbm.callback import CallbackEnv

from lightgbm_helpers import OWN
from mlflow_iap_callbacks.lightgbm.curves import Curves
from own_log import said_by_us
from recording_run import RecordingRun

_Item = tuple[Any, ...]


def _env(
    step: int,
    items: Sequence[_Item] | None = (),
    *,
    rounds: int = 10,
    first: int = 0,
    params: dict[str, Any] | None = None,
    is_cv: bool = False,
) -> CallbackEnv:
    found: Any = SimpleNamespace(
        model=SimpleNamespace(**({"boosters": []} if is_cv else {})),
        params=params or {},
        iteration=step,
        begin_iteration=first,
        end_iteration=first + rounds,
        evaluation_result_list=items,
    )
    return found  # type: ignore[no-any-return]


def _log(curves: Curves, env: CallbackEnv, folds: Iterable[tuple[str, str, int, Any]] = ()) -> None:
    """Log an iteration as the callback does."""
    if not curves.log_usual(env):
        curves.log(env, folds)


def _logged(
    iterations: Iterable[Sequence[_Item] | None],
    *,
    first: int = 0,
    rounds: int = 10,
    max_points: int | None = None,
    best_iteration: int = 0,
) -> RecordingRun:
    """Log iterations with these evaluations, and the end."""
    run, iterations = RecordingRun(), list(iterations)
    # Only those of a cross-validation have a standard deviation.
    is_cv = any(sum(1 for _ in item) > 4 for items in iterations for item in items or ())
    curves = Curves(run, _env(first, first=first, rounds=rounds, is_cv=is_cv), max_points)
    for step, items in enumerate(iterations, start=first):
        _log(curves, _env(step, items, first=first, rounds=rounds))
    curves.log_end(best_iteration)
    return run


def _curves(run: RecordingRun) -> dict[str, list[tuple[int, Any]]]:
    """The curves of the evaluations, by metric."""
    names = [name for name in run.metrics() if not name.startswith(OWN)]
    return {name: sorted(run.curve(name)) for name in names}


def _one(values: Sequence[Any], *, is_higher_better: bool = False) -> list[list[_Item]]:
    """Evaluations of one metric of one data set."""
    return [[("valid", "loss", value, is_higher_better)] for value in values]


class _SlowItem(tuple[Any, ...]):
    """An evaluation like LightGBM 4.7's, whose length is computed."""

    def __len__(self) -> int:
        raise AssertionError("this takes its time")


# forms


@pytest.mark.parametrize("kind", [tuple, list, _SlowItem])
@pytest.mark.parametrize(
    "item", [("valid", "auc", 0.5, True), ("valid", "auc", 0.5, True, None)], ids=["4", "5"]
)
def test_an_evaluation_is_a_point_of_its_data_set_and_metric(
    kind: Callable[[Any], Any], item: _Item
) -> None:
    assert _curves(_logged([[kind(item)]])) == {"valid-auc": [(0, 0.5)]}


@pytest.mark.parametrize(
    "item",
    [
        ("cv_agg", "valid auc", 0.5, True, 0.1),
        ("valid", "auc", 0.5, True, 0.1),
        _SlowItem(("valid", "auc", 0.5, True, 0.1)),
    ],
    ids=["4.5", "4.6", "4.7"],
)
def test_an_evaluation_of_a_cross_validation_has_its_standard_deviation(item: _Item) -> None:
    assert _curves(_logged([[item]])) == {"valid-auc": [(0, 0.5)], "valid-auc-stdv": [(0, 0.1)]}


def test_a_metric_of_lightgbm_4_5_keeps_the_spaces_in_its_name() -> None:
    found = _logged([[("cv_agg", "train my own", 0.5, True, 0.1)]])
    assert _curves(found) == {"train-my own": [(0, 0.5)], "train-my own-stdv": [(0, 0.1)]}


@pytest.mark.parametrize("items", [None, []])
def test_training_without_valid_sets_has_no_curves(items: Any) -> None:
    run = _logged([items, items])
    assert _curves(run) == {}
    assert run.curve("stopped_iteration") == [(1, 2)]


def test_steps_are_lightgbms_iterations_when_training_continues_a_model() -> None:
    run = _logged(_one([3.0, 2.0, 4.0]), first=7)
    assert _curves(run) == {"valid-loss": [(7, 3.0), (8, 2.0), (9, 4.0)]}
    assert run.curve("best-valid-loss") == [(8, 2.0)]
    assert run.curve("stopped_iteration") == [(9, 10)]


def test_the_time_of_an_iteration_is_logged_from_the_second_one_on() -> None:
    run = _logged(_one([1.0, 2.0, 3.0]))
    found = run.curve("seconds_per_iteration")
    assert [step for step, _ in found] == [1, 2]
    assert all(seconds >= 0 for _, seconds in found)


def test_points_have_the_time_of_their_iteration() -> None:
    run = _logged(_one([1.0, 2.0]))
    moments = [moment for name, _, moment, _ in run.points if name == "valid-loss"]
    assert None not in moments
    assert moments == sorted(moments)  # type: ignore[type-var]
    (best,) = [moment for name, _, moment, _ in run.points if name == "best-valid-loss"]
    assert best == moments[0]


# names


def test_names_that_would_be_the_same_stay_distinct_and_a_tag_has_the_originals() -> None:
    run = _logged([[("a", "b-c", 1.0, True), ("a-b", "c", 2.0, True)]] * 2)
    found = _curves(run)
    assert len(found) == 2
    assert found.pop("a-b-c") == [(0, 1.0), (1, 1.0)]
    ((other, curve),) = found.items()
    assert curve == [(0, 2.0), (1, 2.0)]
    assert other.startswith("a-b-c-")
    assert run.tags[f"mlflow_iap.name.{other}"] == "a-b, c"
    assert set(run.tags.values()) == {"a-b, c", "best, a-b, c"}
    bests = {name: run.curve(name) for name in run.metrics() if name.startswith("best-")}
    assert sorted(bests.values()) == [[(0, 1.0)], [(0, 2.0)]]


def test_two_data_sets_with_the_same_name_have_two_curves_and_two_best_values() -> None:
    run = _logged([[("x", "loss", 2.0, False), ("x", "loss", 1.0, False)]] * 2)
    assert _curves(run) == {"x-loss": [(0, 2.0), (1, 2.0)], "x-loss-1": [(0, 1.0), (1, 1.0)]}
    assert (run.curve("best-x-loss"), run.curve("best-x-loss-1")) == ([(0, 2.0)], [(0, 1.0)])


def test_a_data_set_called_best_is_not_confused_with_the_best_values() -> None:
    run = _logged([[("best", "x-loss", 1.0, True), ("x", "loss", 2.0, True)]])
    assert sorted(value for name, _, _, value in run.points if "loss" in name) == [1, 1, 2, 2]
    names = [name for name, *_ in run.points if "loss" in name]
    assert len(set(names)) == 4


# bests


@pytest.mark.parametrize(
    ("values", "is_higher_better", "expected"),
    [
        ([3.0, 1.0, 2.0], False, (1, 1.0)),
        ([3.0, 1.0, 4.0], True, (2, 4.0)),
        ([2.0, 2.0, 2.0], False, (0, 2.0)),
        ([math.nan, 2.0, 3.0, math.nan], False, (1, 2.0)),
        ([math.inf, 2.0, -math.inf], True, (0, math.inf)),
        ([True, False], False, (1, 0.0)),
    ],
)
def test_the_best_value_is_the_first_one_and_never_nan(
    values: list[Any], is_higher_better: bool, expected: tuple[int, float]
) -> None:
    run = _logged(_one(values, is_higher_better=is_higher_better))
    assert run.curve("best-valid-loss") == [expected]


def test_nan_is_never_the_best_value() -> None:
    run = _logged(_one([math.nan]))
    assert run.curve("best-valid-loss") == []
    assert len(run.curve("valid-loss")) == 1


def test_the_best_value_may_follow_nan() -> None:
    run = _logged(
        [
            [("valid", "loss", loss, False), ("valid", "auc", auc, True)]
            for loss, auc in ((2.0, 0.1), (math.nan, 0.2), (1.0, 0.3))
        ]
    )
    assert run.curve("best-valid-loss") == [(2, 1.0)]


def test_whether_a_higher_value_is_better_may_change() -> None:
    run = _logged([[("valid", "loss", float(n), n == 2)] for n in range(4)])
    assert run.curve("best-valid-loss") == [(2, 2.0)]


_NUMBERS = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, math.nan]),
    st.floats(width=32),
    st.floats(width=32).map(np.float32),
    st.floats(-1, 1).map(np.float64),
    st.integers(-3, 3),
)
_METRICS = st.lists(
    st.tuples(st.sampled_from(["train", "valid"]), st.sampled_from(["auc", "loss"]), st.booleans()),
    max_size=3,
)
# Some iterations in a row with the same metrics.
_ITERATIONS = _METRICS.flatmap(
    lambda places: st.lists(st.tuples(*(st.tuples(st.just(place), _NUMBERS) for place in places)))
)


@given(st.lists(_ITERATIONS, max_size=3))
def test_points_and_bests_are_those_of_a_loop_over_all_evaluations(
    parts: list[list[Sequence[tuple[tuple[str, str, bool], Any]]]],
) -> None:
    iterations = [items for part in parts for items in part]
    expected: dict[str, list[tuple[int, float]]] = {}
    best: dict[str, tuple[int, float]] = {}
    for step, items in enumerate(iterations):
        seen: set[str] = set()
        for (data, metric, is_higher_better), given_value in items:
            name, value = f"{data}-{metric}", float(given_value)
            if name in seen:
                name = f"{name}-{len(seen)}"
            seen.add(name)
            expected.setdefault(name, []).append((step, value))
            before = best.get(name, (0, math.nan))[1]
            is_worse = value <= before if is_higher_better else value >= before
            if not (is_worse or math.isnan(value)):
                best[name] = (step, value)
    run = _logged(
        [[(*place[:2], value, place[2]) for place, value in items] for items in iterations],
        rounds=len(iterations),
    )
    found = _curves(run)
    assert {name: repr(found.get(name)) for name in expected} == {
        name: repr(points) for name, points in expected.items()
    }
    assert {name: run.curve(f"best-{name}") for name in best} == {
        name: [point] for name, point in best.items()
    }


class _Unconvertible:
    """A value like a tensor of several numbers, for which ``float`` raises an error of its own."""

    def __float__(self) -> float:
        raise RuntimeError

    def __repr__(self) -> str:
        return "tensor"


@pytest.mark.parametrize(
    "value", ["odd", None, 1j, 10**400, np.ones(2), [0.5], _Unconvertible()], ids=repr
)
def test_a_value_that_is_not_a_number_costs_only_its_own_point_and_is_reported_once(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    items = [("valid", "odd", value, False), ("valid", "loss", 0.5, False)]
    run = _logged([items, [("valid", "odd", 0.25, False), items[1]], items])
    assert _curves(run) == {
        "valid-loss": [(step, 0.5) for step in range(3)],
        "valid-odd": [(1, 0.25)],
    }
    (text,) = said_by_us(caplog)
    assert "'valid-odd'" in text
    assert "at step 0" in text


@pytest.mark.parametrize(("best", "expected"), [(0, []), (1, [(2, 1)]), (2, [(2, 2)])])
def test_the_best_iteration_is_lightgbms_if_it_has_one(
    best: int, expected: list[tuple[int, int]]
) -> None:
    run = _logged(_one([3.0, 1.0, 2.0]), best_iteration=best)
    assert run.curve("best_iteration") == expected
    assert run.curve("stopped_iteration") == [(2, 3)]


# thinning


@pytest.mark.parametrize("max_points", [3, 4, 10, 50])
@pytest.mark.parametrize("rounds", [1, 2, 7, 100, 101])
def test_a_thinned_curve_has_at_most_max_points_including_the_best_and_the_last(
    rounds: int, max_points: int
) -> None:
    values = [abs(step - rounds * 0.6) for step in range(rounds)]
    run = _logged(_one(values), rounds=rounds, max_points=max_points)
    found = sorted(run.curve("valid-loss"))  # the best one is logged at the end
    assert len(found) == len(set(found))
    assert set(found) <= set(enumerate(values))
    assert len(found) <= max_points
    assert found[0] == (0, values[0])
    assert found[-1] == (rounds - 1, values[-1])
    assert min(values) in [value for _, value in found]
    if rounds <= max_points - 2:
        assert len(found) == rounds


@pytest.mark.parametrize("max_points", [3, 10, 100])
@pytest.mark.parametrize("stopped", [7, 150, 1500])
def test_a_curve_that_stops_early_has_max_points_from_all_of_it(
    stopped: int, max_points: int
) -> None:
    values = [abs(step - stopped * 0.6) for step in range(stopped)]
    run = _logged(_one(values), rounds=100_000, max_points=max_points)
    found = sorted(run.curve("valid-loss"))
    steps = [step for step, _ in found]
    assert len(set(steps)) == len(found)
    assert set(found) <= set(enumerate(values))
    assert 0.9 * min(max_points, stopped) <= len(found) <= max_points
    assert (steps[0], steps[-1]) == (0, stopped - 1)
    assert min(values) in [value for _, value in found]
    widest = max(b - a for a, b in itertools.pairwise(steps))
    assert widest <= max(2, 3 * stopped / max_points)


def test_a_thinned_curve_is_visible_while_it_grows() -> None:
    run = RecordingRun()
    curves = Curves(run, _env(0, rounds=100_000), 100)
    for step in range(1500):
        _log(curves, _env(step, [("valid", "loss", 1.0, False)], rounds=100_000))
    steps = [step for step, _ in run.curve("valid-loss")]
    assert len(steps) > 10
    assert steps[-1] > 1000


def test_the_best_point_of_a_thinned_cross_validation_keeps_its_deviation_and_folds() -> None:
    run = RecordingRun()
    curves = Curves(run, _env(0, rounds=1000, is_cv=True), 3)
    for step, mean in enumerate([5.0, 1.0, 4.0]):
        other = [1.0, 2.0, 3.0][step]
        items = [("valid", "loss", mean, False, mean / 10), ("valid", "other", other, False, 0.0)]
        folds = [("valid", "loss", 0, mean + 1), ("valid", "loss", 1, mean - 1)]
        _log(curves, _env(step, items, rounds=1000), folds)
    curves.log_end(0)
    assert run.curve("valid-loss") == [(0, 5.0), (1, 1.0), (2, 4.0)]
    assert run.curve("valid-loss-stdv") == [(0, 0.5), (1, 0.1), (2, 0.4)]
    assert run.curve("valid-loss-fold0") == [(0, 6.0), (1, 2.0), (2, 5.0)]
    assert run.curve("valid-loss-fold1") == [(0, 4.0), (1, 0.0), (2, 3.0)]
    assert run.curve("valid-other") == [(0, 1.0), (2, 3.0)]


# changes of params


def _changes(
    *given: dict[str, Any], max_points: int | None = None, rounds: int = 10
) -> RecordingRun:
    run = RecordingRun()
    curves = Curves(run, _env(0, params=given[0], rounds=rounds), max_points)
    for step, params in enumerate(given):
        _log(curves, _env(step, params=params, rounds=rounds))
    curves.log_end(0)
    return run


def _rates(*given: dict[str, Any], **options: Any) -> list[tuple[int, Any]]:
    return sorted(_changes(*given, **options).curve("learning_rate"))


def test_the_learning_rate_is_a_curve_of_its_changes() -> None:
    rates = [0.1, 0.1, 0.05, 0.05, 0.02]
    found = _rates(*({"learning_rate": rate} for rate in rates))
    assert found == [(0, 0.1), (2, 0.05), (4, 0.02)]


@pytest.mark.parametrize("name", ["learning_rate", "shrinkage_rate", "eta"])
def test_the_learning_rate_is_found_under_each_of_its_names(name: str) -> None:
    assert _rates({name: 0.1}, {name: 0.2}) == [(0, 0.1), (1, 0.2)]


def test_a_constant_learning_rate_has_no_curve() -> None:
    assert _rates(*({"learning_rate": 0.1},) * 3) == []


def test_a_learning_rate_that_changes_under_another_of_its_names_is_logged() -> None:
    found = _rates({"eta": 0.1}, {"eta": 0.1, "learning_rate": 0.2})
    assert found == [(0, 0.1), (1, 0.2)]


@pytest.mark.parametrize("max_points", [None, 3, 10])
def test_a_change_of_the_learning_rate_is_logged_no_matter_how_curves_are_thinned(
    max_points: int | None,
) -> None:
    given = [{"learning_rate": 0.1 if step < 53 else 0.01} for step in range(100)]
    assert _rates(*given, max_points=max_points, rounds=100) == [(0, 0.1), (53, 0.01)]


@pytest.mark.parametrize(
    ("given", "name", "values"),
    [
        ({"bagging_fraction": [0.5, 0.6]}, "bagging_fraction", [0.5, 0.6]),
        ({"subsample": [0.5, 0.6]}, "bagging_fraction", [0.5, 0.6]),
        ({"num_leaves": [31, 15]}, "num_leaves", [31.0, 15.0]),
        ({"extra_trees": [True, False]}, "extra_trees", [1.0, 0.0]),
        ({"mine": [1, np.float32(2)]}, "mine", [1.0, 2.0]),
    ],
)
def test_every_param_that_changes_has_a_curve(
    given: dict[str, list[Any]], name: str, values: list[float]
) -> None:
    ((param, (first, second)),) = given.items()
    run = _changes({param: first, "seed": 1}, {param: second, "seed": 1})
    assert run.metrics() == {name, "seconds_per_iteration", "stopped_iteration"}
    assert run.curve(name) == list(enumerate(values))


def test_a_param_that_is_first_given_later_has_a_curve_from_there() -> None:
    assert _changes({}, {}, {"lambda_l1": 2.0}).curve("lambda_l1") == [(2, 2.0)]


def test_a_param_that_is_not_a_number_has_no_curve() -> None:
    run = _changes({"a": [1], "b": "x", "c": None}, {"a": [2], "b": "y", "c": np.ones(3)})
    assert run.metrics() == {"seconds_per_iteration", "stopped_iteration"}


def test_a_param_that_always_changes_has_at_most_max_points_including_the_last() -> None:
    given = [{"learning_rate": 0.99**step} for step in range(1000)]
    found = _rates(*given, max_points=20, rounds=100_000)
    assert 15 <= len(found) <= 20
    assert found[0] == (0, 1.0)
    assert found[-1] == (999, 0.99**999)


# samples for a plot


def test_the_samples_have_only_numbers_and_texts_for_names() -> None:
    curves = Curves(RecordingRun(), _env(0), None)
    _log(curves, _env(0, [(None, "odd", None, False), (3, "loss", 0.5, False)]))
    assert curves.samples() == [(0, {("3", "loss"): 0.5})]


def test_the_samples_of_a_short_run_are_its_evaluations_without_deviation_and_folds() -> None:
    curves = Curves(RecordingRun(), _env(0, is_cv=True), None)
    for step in range(3):
        items = [("valid", "loss", float(step), False, 0.1)]
        _log(curves, _env(step, items), [("valid", "loss", 0, 9.0)])
    assert curves.samples() == [(step, {("valid", "loss"): float(step)}) for step in range(3)]


def test_a_long_run_has_at_most_1000_samples_from_all_of_it() -> None:
    curves = Curves(RecordingRun(), _env(0, rounds=5000), 3)
    for step in range(5000):
        _log(curves, _env(step, [("valid", "loss", float(step), False)], rounds=5000))
    samples = curves.samples()
    steps = [step for step, _ in samples]
    assert 500 <= len(samples) <= 1000
    assert steps[0] == 0
    assert steps[-1] > 4900
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1
    assert all(values == {("valid", "loss"): float(step)} for step, values in samples)


def test_a_name_that_utf_8_lacks_has_a_whole_curve() -> None:
    iterations = [[("valid", "m\ud800", step / 2, True)] for step in range(3)]
    assert _curves(_logged(iterations)) == {"valid-m\ud800": [(0, 0.0), (1, 0.5), (2, 1.0)]}


def test_a_metric_without_a_direction_is_better_if_it_is_lower() -> None:
    run = _logged([[("valid", "m", value, None)] for value in (2.0, 1.0, 3.0)])
    assert run.curve("best-valid-m") == [(1, 1.0)]


@pytest.mark.parametrize("value", [np.array([0.5]), np.float32(0.5), 0.5])
def test_the_value_of_a_fold_may_be_anything_that_is_a_number(value: Any) -> None:
    run = RecordingRun()
    curves = Curves(run, _env(0, is_cv=True), None)
    items = [("valid", "m", 0.5, True, 0.0)]
    no_number: Any = "no number"
    _log(curves, _env(0, items), [("valid", "m", 0, value), ("valid", "m", 1, no_number)])
    assert run.curve("valid-m-fold0") == [(0, 0.5)]
    assert run.curve("valid-m-fold1") == []
    assert run.curve("valid-m") == [(0, 0.5)]


def test_a_summary_amid_training_shows_all_best_values_so_far_and_changes_nothing() -> None:
    curves = Curves(RecordingRun(), _env(0, rounds=3000), None)
    best = -1.0
    for step in range(3000):
        value = math.sin(step)
        best = max(best, value)
        _log(curves, _env(step, [("valid", "m", value, True)], rounds=3000))
        if step % 7 == 0:
            assert curves.bests()["valid-m"][0] == best
    assert curves.bests()["valid-m"][0] == best


def test_an_exception_while_values_are_compared_loses_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    curves = Curves(RecordingRun(), _env(0, rounds=2000), None)
    compare_rows = curves._compare_rows
    interrupted: list[int] = []

    def interrupt(*_: object) -> None:
        interrupted.append(step)
        raise KeyboardInterrupt

    for step in range(1200):
        monkeypatch.setattr(curves, "_compare_rows", interrupt if step < 1100 else compare_rows)
        with suppress(KeyboardInterrupt):
            _log(curves, _env(step, [("valid", "m", float(step != 20), False)], rounds=2000))
    assert interrupted
    assert curves.bests()["valid-m"] == (0.0, 20)
    assert [step for step, _ in curves.samples()] == [*range(0, 1200, 2)]


# iterations like the one before


_VALID: _Item = ("valid", "m", 0.5, True)


@pytest.mark.parametrize(
    ("items", "is_usual"),
    [
        pytest.param([_VALID], True, id="the same evaluations"),
        pytest.param([("valid", "m", np.float64(0.25), True)], True, id="NumPy's float"),
        pytest.param([("valid", "m", 1, True)], False, id="an integer"),
        pytest.param([("valid", "m", "no number", True)], False, id="no number"),
        pytest.param([("valid", "m", 0.5, False)], False, id="another direction"),
        pytest.param([("valid", "other", 0.5, True)], False, id="another metric"),
        pytest.param([("other", "m", 0.5, True)], False, id="another data set"),
        pytest.param([_VALID, ("valid", "other", 0.5, True)], False, id="one more"),
        pytest.param([], False, id="none"),
        pytest.param(None, False, id="no list"),
    ],
)
def test_an_iteration_with_other_evaluations_than_before_is_not_usual(
    items: list[_Item] | None, is_usual: bool
) -> None:
    curves = Curves(RecordingRun(), _env(0), None)
    curves.log(_env(0, [_VALID]), ())
    assert curves.log_usual(_env(1, items)) is is_usual


@pytest.mark.parametrize(
    ("step", "params", "is_usual"),
    [
        (1, {"rate": 0.1, "names": ["a"]}, True),
        (1, {"names": ["a"], "rate": 0.1}, True),
        (1, {"rate": 0.2, "names": ["a"]}, False),
        (1, {"rate": 0.1}, False),
        (1, {"rate": 0.1, "names": ["a"], "more": 1}, False),
        (1, {"rate": 0.1, "names": np.array(["a", "b"])}, False),
        (0, {"rate": 0.1, "names": ["a"]}, False),
        (9, {"rate": 0.1, "names": ["a"]}, False),
    ],
)
def test_the_first_and_last_iteration_and_one_with_other_params_are_not_usual(
    step: int, params: dict[str, Any], is_usual: bool
) -> None:
    curves = Curves(RecordingRun(), _env(0, params={"rate": 0.1, "names": ["a"]}), None)
    curves.log(_env(0, [_VALID], params={"rate": 0.1, "names": ["a"]}), ())
    assert curves.log_usual(_env(step, [_VALID], params=params)) is is_usual


@pytest.mark.parametrize(("is_cv", "max_points"), [(True, None), (False, 5)])
def test_no_iteration_of_a_cross_validation_or_a_thinned_curve_is_usual(
    is_cv: bool, max_points: int | None
) -> None:
    curves = Curves(RecordingRun(), _env(0, is_cv=is_cv), max_points)
    items: list[_Item] = [("valid", "m", 0.5, True, 0.0)]
    curves.log(_env(0, items), ())
    assert not curves.log_usual(_env(1, items))


def test_no_iteration_is_usual_when_training_has_ended() -> None:
    curves = Curves(RecordingRun(), _env(0), None)
    curves.log(_env(0, [_VALID]), ())
    curves.log_end(0)
    assert not curves.log_usual(_env(1, [_VALID]))
