"""The texts of a study's page: names and values of any kind, and limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, create_trial

from mlflow_iap_callbacks.limits import MAX_EXPERIMENT_TAG_LENGTH, MAX_TAG_LENGTH
from mlflow_iap_callbacks.optuna.study_page import description, view_tags

pytestmark = pytest.mark.filterwarnings("ignore:Choices for a categorical:UserWarning")


def _text(*best: FrozenTrial, **given: Any) -> str:
    return description(
        **{
            "study_name": "s",
            "names": ["value"],
            "directions": ["MINIMIZE"],
            "counts": {"COMPLETE": len(best)},
            "best": best,
            "key": "key",
            "run_id": "r1",
            "experiment_id": "7",
            "files": (),
            "problems": (),
            **given,
        }
    )


def _trial(*values: float, **params: Any) -> FrozenTrial:
    distributions: dict[str, Any] = {n: CategoricalDistribution([v]) for n, v in params.items()}
    return create_trial(values=values, params=params, distributions=distributions)


def test_markdown_in_names_and_values_is_shown_as_it_is() -> None:
    text = _text(_trial(1.0, **{"a|b": "x|y\n# z", "<b>": "[l](u)"}))
    assert "| a\\|b | x\\|y \\# z |" in text.splitlines()
    assert "| \\<b\\> | \\[l\\]\\(u\\) |" in text.splitlines()


def test_the_trials_of_a_pareto_front_have_a_row_each() -> None:
    best = [_trial(1.0, 5.0, a=1), _trial(2.0, 4.0, b="c")]
    best[1].number = 3
    text = _text(*best, names=["loss", "time"], directions=["MINIMIZE", "MAXIMIZE"])
    assert text.startswith("**2 trials on the Pareto front** · loss (minimize), time (maximize)")
    assert "| trial | loss | time | a | b |" in text
    assert "| 3 | 2 | 4 |  | c |" in text.splitlines()


def test_without_a_run_id_there_are_no_links() -> None:
    text = _text(_trial(1.0, a=1), run_id=None, files={"slice.png", "study.log"})
    assert "](" not in text
    assert "artifact" not in text


def test_the_interactive_page_is_the_first_of_the_plots() -> None:
    text = _text(_trial(1.0), files={"edf.png", "plots.html", "trials.csv", "study.log"})
    assert text.index("study/plots.html") < text.index("study/edf.png")
    assert "trials.csv" not in text


def test_a_long_study_has_a_description_that_mlflow_accepts() -> None:
    trial = _trial(1.0, **{f"{n}" * 80: "x" * 1000 for n in range(200)})
    text = _text(trial, problems=["y" * 1000] * 30, files={f"slice-{n}.png" for n in range(30)})
    assert len(text) <= MAX_TAG_LENGTH
    assert "and 180 more" in text
    assert "Resume the study" not in text or text.endswith("```")


@pytest.mark.parametrize("length", [1, 240])
def test_a_view_has_as_many_columns_as_fit(length: int) -> None:
    params = [f"{n:0{length}}" for n in range(200)]
    ((name, text),) = view_tags("key", ["value"], params, is_maximized=False).items()
    columns = json.loads(text)["selectedColumns"]
    assert name == "mlflow.sharedViewState.key"
    assert columns[:2] == ["metrics.`value`", f"params.`{params[0]}`"]
    assert len(columns) > 10
    assert len(text) <= MAX_EXPERIMENT_TAG_LENGTH


def test_a_view_has_the_names_that_mlflow_stores() -> None:
    (text,) = view_tags("key", ["auc@5"], ["a=b"], is_maximized=True).values()
    columns = json.loads(text)["selectedColumns"]
    assert not any("@" in column or "=" in column for column in columns)
