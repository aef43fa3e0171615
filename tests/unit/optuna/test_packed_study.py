"""Studies as JSON and back, whatever their trials contain."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from enum import Enum
from typing import Any, cast

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from mlflow_iap_callbacks.limits import MAX_TAG_LENGTH
from mlflow_iap_callbacks.optuna.packed_study import packed, unpacked
from optuna_helpers import new_study

pytestmark = pytest.mark.filterwarnings("ignore:Choices for a categorical:UserWarning")


class _Size(str, Enum):
    SMALL = "small"


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


class _Kind:
    def __repr__(self) -> str:
        return "kind"


def _content(study: optuna.Study) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(packed(study, ["value"]))
    return content


def _cyclic() -> list[Any]:
    found: list[Any] = []
    found.append({"again": found})
    return found


@pytest.fixture
def study() -> optuna.Study:
    """Trials in every state."""
    study = new_study()
    study.add_trial(
        create_trial(
            params={"c": None, "i": 3},
            distributions={
                "c": CategoricalDistribution([None, True, "ü", 1.5, math.nan]),
                "i": IntDistribution(1, 1000, log=True),
            },
            value=1.5,
            user_attrs={"note": "a,b\n0", "scores": [1, 2.5, None]},
            system_attrs={"constraints": [0.0, 1.0]},
            intermediate_values={0: 3.0, 7: math.inf},
        )
    )
    study.add_trial(create_trial(state=TrialState.PRUNED))
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.ask()
    study.enqueue_trial({"x": 1})
    return study


def test_trials_come_back_unchanged(study: optuna.Study) -> None:
    content = _content(study)
    again = unpacked(content)
    assert again == [_renumbered(trial) for trial in study.get_trials()]
    assert content["lost"] == []


def _renumbered(trial: optuna.trial.FrozenTrial) -> optuna.trial.FrozenTrial:
    trial._trial_id = trial.number
    return trial


@pytest.mark.parametrize(
    ("choices", "stored"),
    [
        (np.arange(10, 30, 10), [10, 20]),
        (np.array([0.5, 1.5], dtype=np.float32), [0.5, 1.5]),
        ([np.bool_(True), np.str_("a")], [True, "a"]),
        ([_Size.SMALL, "large"], ["small", "large"]),
        ([(1, 2), (3, (4,))], [[1, 2], [3, [4]]]),
        ([{"a": (1,)}, None], [{"a": [1]}, None]),
        ([dict, list], ["<class 'dict'>", "<class 'list'>"]),
        ([_Kind(), _Kind()], ["kind", "kind (1)"]),
    ],
)
def test_choices_of_any_kind_are_stored(choices: Any, stored: list[Any]) -> None:
    study = new_study()
    for choice in choices:
        distribution = CategoricalDistribution(list(choices))
        study.add_trial(
            create_trial(params={"c": choice}, distributions={"c": distribution}, value=1.0)
        )
    again = unpacked(_content(study))
    assert [trial.params["c"] for trial in again] == stored
    assert [list(trial.distributions["c"].choices) for trial in again] == [stored] * len(again)  # type: ignore[attr-defined]


def test_choices_that_a_resumed_study_has_in_another_form_are_named() -> None:
    study, sizes = new_study(), cast("list[str]", [(1, 2), (3,)])
    study.optimize(lambda trial: len(trial.suggest_categorical("size", sizes)), 2)
    (lost,) = _content(study)["lost"]
    assert "'size'" in lost


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ({(0, 1): 3}, "{(0, 1): 3}"),
        ({1: (2, np.int64(3))}, {"1": [2, 3]}),
        (_cyclic(), "[{'again': [...]}]"),
        (object, "<class 'object'>"),
        ("\ud800", "?"),
        ([0.5] * 100_000, str([0.5] * MAX_TAG_LENGTH)[:MAX_TAG_LENGTH]),
        (np.float64(0.5), 0.5),
        (np.arange(3), "[0 1 2]"),
    ],
)
def test_attributes_of_any_kind_are_stored(value: Any, stored: Any) -> None:
    study = new_study()
    study.set_user_attr("odd", value)
    study.add_trial(create_trial(value=1.0, user_attrs={"odd": value}))
    content = _content(study)
    assert content["user_attrs"] == content["trials"][0]["user_attrs"] == {"odd": stored}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda trial: trial.user_attrs.update({"odd": _Unprintable(), "even": 1}),
        lambda trial: trial.distributions.update({"odd": IntDistribution(0, 1)}),
        lambda trial: setattr(trial, "_values", ["no number"]),
    ],
)
def test_what_cannot_be_read_is_named_and_the_rest_is_stored(
    spoil: Callable[[optuna.trial.FrozenTrial], None],
) -> None:
    study = new_study()
    study.optimize(lambda trial: trial.suggest_int("i", 0, 9), 2)
    spoil(study._storage._studies[0].trials[0])  # type: ignore[attr-defined]
    content = _content(study)
    assert [trial["params"] for trial in content["trials"]][-1] == study.trials[1].params
    (lost,) = content["lost"]
    assert "'odd'" in lost or "trial 0" in lost
