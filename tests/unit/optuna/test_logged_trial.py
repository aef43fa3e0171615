"""Whether a run in MLflow has what a trial has."""

from __future__ import annotations

import optuna
import pytest
from mlflow.entities import Param, Run, RunData, RunInfo, RunTag

from mlflow_iap_callbacks.optuna.logged_trial import is_complete


def _run(params: dict[str, str], tags: dict[str, str]) -> Run:
    info = RunInfo("id", "0", "user", "KILLED", 1000, 2000, "active")
    data = RunData(
        params=[Param(*each) for each in params.items()],
        tags=[RunTag(*each) for each in tags.items()],
    )
    return Run(info, data)


@pytest.mark.parametrize("taken", ["a_at_1-e35195", "a_1-e35195"])
def test_a_param_whose_name_was_changed_is_found_by_the_tag_with_its_original_name(
    taken: str,
) -> None:
    uniform = optuna.distributions.FloatDistribution(0, 1)
    trial = optuna.trial.create_trial(
        state=optuna.trial.TrialState.PRUNED,
        params={"a@1": 0.5, "a_at_1": 0.25},
        distributions={"a@1": uniform, "a_at_1": uniform},
    )
    tags = {
        "mlflow_iap.trial_state": "PRUNED",
        "mlflow_iap.name." + taken: "a@1",
    }
    assert is_complete(_run({taken: "0.5", "a_at_1": "0.25"}, tags), trial)
    assert not is_complete(_run({"a_at_1": "0.25"}, tags), trial)
