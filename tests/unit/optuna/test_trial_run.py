"""What a trial's run contains: names of values, tags and results."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from mlflow_iap_callbacks.optuna import trial_run
from mlflow_iap_callbacks.optuna.trial_run import (
    constraints_of,
    log_results,
    metric_names,
    results_of,
    tags_of,
    to_ms,
)
from optuna_helpers import new_study
from recording_run import RecordingRun

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

_ENDED = datetime(2026, 1, 2, 3, 4, 5, 678000)


@pytest.mark.parametrize(
    ("given", "own", "one", "two"),
    [
        (None, None, ["value"], ["value_0", "value_1"]),
        ("loss", None, ["loss"], ["loss_0", "loss_1"]),
        (["loss"], None, ["loss"], ["value_0", "value_1"]),
        (("a", "b"), None, ["value"], ["a", "b"]),
        ([], None, ["value"], ["value_0", "value_1"]),
        ("mine", ["own"], ["mine"], ["mine_0", "mine_1"]),
        (["a", "b", "c"], ["own"], ["value"], ["value_0", "value_1"]),
        (None, ["own"], ["own"], None),
        (None, ["x", "y"], None, ["x", "y"]),
        (None, ["x", "x"], None, ["x_0", "x_1"]),
        (["x", "x"], None, ["value"], ["x_0", "x_1"]),
        ([1, 2], None, ["value"], ["1", "2"]),
    ],
)
def test_values_have_the_given_names_or_the_study_s(
    given: Any, own: list[str] | None, one: list[str] | None, two: list[str] | None
) -> None:
    for study, expected in ((new_study(), one), (new_study("minimize", "maximize"), two)):
        if expected is not None:
            if own is not None and len(own) == len(study.directions):
                study.set_metric_names(own)
            assert metric_names(given, study) == expected


def _logged(trial: optuna.trial.FrozenTrial, names: Sequence[str] = ("value",)) -> RecordingRun:
    run = RecordingRun()
    trial.datetime_complete = _ENDED
    log_results(run, results_of(trial, names), to_ms(_ENDED) or 0)
    return run


def test_params_values_and_reports_are_logged_at_the_time_the_trial_ended() -> None:
    trial = create_trial(
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0.0, 1.0)},
        value=2.0,
        intermediate_values={7: 0.7, 0: 0.0, 3: 0.3},
    )
    run = _logged(trial)
    assert run.suggestions == {"x": 0.5}
    assert run.curve("value") == [(0, 2.0)]
    assert run.curve("intermediate_value") == [(0, 0.0), (3, 0.3), (7, 0.7)]
    assert {moment for _, _, moment, _ in run.points} == {to_ms(_ENDED)}


def test_each_of_several_values_has_its_name() -> None:
    run = _logged(create_trial(values=[1.0, 2.0]), ["loss", "time"])
    assert {name: run.curve(name) for name in run.metrics()} == {
        "loss": [(0, 1.0)],
        "time": [(0, 2.0)],
    }


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED])
def test_a_trial_without_values_and_params_logs_nothing(state: TrialState) -> None:
    run = _logged(create_trial(state=state))
    assert (run.points, run.suggestions) == ([], {})


def test_constraints_are_metrics_by_number_or_by_name() -> None:
    trial = create_trial(value=1.0, system_attrs={"constraints": [0.0, 0.5]})
    found = {str(name): value for name, value in constraints_of(trial).items()}
    run = _logged(trial)
    assert list(found.values()) == [0.0, 0.5]
    for name, value in found.items():
        assert run.curve(f"constraint.{name}") == [(0, value)]


def test_tags_show_number_times_state_direction_and_distributions() -> None:
    distribution = FloatDistribution(0.0, 1.0)
    trial = create_trial(params={"x": 0.5}, distributions={"x": distribution}, value=2.0)
    tags = tags_of(trial, ["MINIMIZE"], {})
    assert tags == {
        "number": trial.number,
        "datetime_start": str(trial.datetime_start),
        "datetime_complete": str(trial.datetime_complete),
        "state": "COMPLETE",
        "direction": "MINIMIZE",
        "x_distribution": "FloatDistribution(high=1.0, log=False, low=0.0, step=None)",
        "_mlflow_iap.trial_state": "COMPLETE",
    }


@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(-0.0, 1e300),
        FloatDistribution(1e-8, 1.0, log=True),
        FloatDistribution(0, 1, step=0.25),
        IntDistribution(1, 2**70),
        IntDistribution(1, 64, log=True),
        IntDistribution(0, 10, step=2),
        CategoricalDistribution(("a", None, 1, True, 0.5)),
        type("FloatDistribution", (FloatDistribution,), {"__str__": lambda _: "mine"})(0, 1),
    ],
    ids=str,
)
def test_the_tag_of_a_distribution_is_its_text(distribution: BaseDistribution) -> None:
    value = distribution.to_external_repr(0 if distribution._contains(0) else 1)
    trial = create_trial(params={"x": value}, distributions={"x": distribution}, value=2.0)
    assert str(tags_of(trial, ["MINIMIZE"], {})["x_distribution"]) == str(distribution)


def test_equal_distributions_keep_their_own_texts() -> None:
    kinds = [FloatDistribution(-0.0, 1.0), FloatDistribution(0.0, 1.0), FloatDistribution(-1, -0.0)]
    kinds += [FloatDistribution(-1, 0.0)]
    params = {str(number): 0.0 for number in range(len(kinds))}
    trial = create_trial(
        params=params, distributions=dict(zip(params, kinds, strict=True)), value=0
    )
    tags = tags_of(trial, ["MINIMIZE"], {})
    assert [str(tags[f"{name}_distribution"]) for name in params] == [*map(str, kinds)]


def _subclass(text: str) -> BaseDistribution:
    fields = {"__str__": lambda _: text}
    kind: type[FloatDistribution] = type("FloatDistribution", (FloatDistribution,), fields)
    return kind(0, 1)


def test_distributions_with_the_same_fields_but_of_other_types_have_their_own_texts() -> None:
    for distribution in (FloatDistribution(0, 1), _subclass("one"), _subclass("two")):
        trial = create_trial(params={"x": 0.5}, distributions={"x": distribution}, value=0)
        assert tags_of(trial, ["MINIMIZE"], {})["x_distribution"] == str(distribution)


def test_distributions_that_change_with_each_trial_have_their_own_texts() -> None:
    for high in [*range(1, 301), *range(1, 301)]:
        distribution = FloatDistribution(0, high)
        trial = create_trial(params={"x": 0.5}, distributions={"x": distribution}, value=0)
        assert tags_of(trial, ["MINIMIZE"], {})["x_distribution"] == str(distribution)
    assert len(trial_run._texts) <= trial_run._MOST_TEXTS


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_a_distribution_of_objects_has_its_text() -> None:
    distribution = CategoricalDistribution((object(), 1))  # type: ignore[arg-type]
    trial = create_trial(params={"x": 1}, distributions={"x": distribution}, value=0)
    assert tags_of(trial, ["MINIMIZE"], {})["x_distribution"] == str(distribution)


def test_directions_of_several_objectives_are_one_tag() -> None:
    tags = tags_of(create_trial(values=[1.0, 2.0]), ["MINIMIZE", "MAXIMIZE"], {})
    assert tags["direction"] == "['MINIMIZE', 'MAXIMIZE']"


@pytest.mark.parametrize(
    ("constraints", "expected"), [([0.0, -1.0], True), ([0.0, 0.1], False), ([], None)]
)
def test_a_trial_with_constraints_says_whether_it_is_feasible(
    constraints: list[float], expected: bool | None
) -> None:
    attrs = {"constraints": constraints} if constraints else {}
    trial = create_trial(value=1.0, system_attrs=attrs)
    assert tags_of(trial, ["MINIMIZE"], {}).get("feasible") is expected


@pytest.mark.parametrize("is_retried", [False, True])
def test_an_enqueued_trial_is_tagged_unless_it_is_a_retry(is_retried: bool) -> None:
    retried = {"retry_history": [0]} if is_retried else {}
    trial = create_trial(value=1.0, system_attrs={"fixed_params": {"x": 1}, **retried})
    assert ("enqueued" in tags_of(trial, ["MINIMIZE"], {})) is not is_retried
    assert "enqueued" not in tags_of(create_trial(value=1.0), ["MINIMIZE"], {})


def test_a_retried_trial_says_which_one_it_repeats() -> None:
    trial = create_trial(value=1.0, system_attrs={"failed_trial": 1, "retry_history": [0, 1]})
    tags = tags_of(trial, ["MINIMIZE"], {})
    assert (tags["retry_of"], tags["retry_history"]) == (1, "[0, 1]")


def test_user_attributes_replace_tags_but_not_the_state_that_sync_reads() -> None:
    given = {"direction": "up", "mine": 1, "_mlflow_iap.trial_state": "odd", "state": "odd"}
    tags = tags_of(create_trial(value=1.0), ["MINIMIZE"], given)
    assert (tags["direction"], tags["mine"], tags["state"]) == ("up", 1, "odd")
    assert tags["_mlflow_iap.trial_state"] == "COMPLETE"


@pytest.mark.parametrize("moment", [None, datetime(1960, 1, 2)])
def test_a_time_that_mlflow_cannot_store_is_unknown(moment: datetime | None) -> None:
    assert to_ms(moment) is None
