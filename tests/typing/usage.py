"""Uses of the public names for a type checker; not run."""

from __future__ import annotations

from typing import Any

import lightgbm as lgb
import optuna
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from typing_extensions import assert_type

from mlflow_iap_callbacks import (
    IAPCredentials,
    IAPError,
    IAPFlushResult,
    IAPLightGBMCallback,
    IAPMLflowCallback,
    IAPMlflowCallback,
    IAPMLflowClient,
    IAPMlflowClient,
    IAPRefusedError,
    IAPRun,
)


def client_is_mlflow_s() -> MlflowClient:
    return IAPMlflowClient("https://host", credentials=IAPCredentials("id"), deadline=30.0)


def callbacks_fit(study: optuna.Study, params: dict[str, Any], data: lgb.Dataset) -> None:
    callback = IAPMLflowCallback(client=client_is_mlflow_s())

    def objective(trial: optuna.Trial) -> float:
        logged = IAPLightGBMCallback(run=callback.run(trial))
        return float(lgb.train(params, data, callbacks=[logged]).best_score["valid"]["auc"])

    study.optimize(objective, callbacks=[callback])


def errors_are_mlflow_s(error: IAPError) -> MlflowException:
    if isinstance(error, IAPRefusedError):
        assert_type(error.status, int)
        assert_type(error.answer, str)
    return error


def tokens_are_text() -> None:
    assert_type(IAPCredentials(kind="signed_jwt").token(), str)
    assert_type(IAPCredentials().describe(), dict[str, str])
    IAPCredentials(kind="nonsense")  # type: ignore[arg-type]
    IAPMlflowClient("https://host", None, IAPCredentials())  # type: ignore[arg-type]


def handles_are_runs(callback: IAPMLflowCallback, trial: optuna.Trial) -> None:
    assert_type(callback.run(trial), IAPRun)
    with IAPRun(experiment_name="first") as run:
        assert_type(run, IAPRun)
        run.log_metric("loss", 0.5, step=1)
        run.log_metrics({"loss": 0.25}, 2)
        run.log_table({"a": [1]}, "a.json")
    result = run.flush()
    assert_type(result, IAPFlushResult)
    assert_type(result.waiting, int)
    is_delivered = bool(result)
    assert_type(is_delivered, bool)
    IAPRun(experiment="first")  # type: ignore[call-arg]
    IAPLightGBMCallback(run=run)


def misspelt_names_are_the_same() -> None:
    assert_type(IAPMlflowCallback(), IAPMLflowCallback)
    assert_type(IAPMLflowClient(), IAPMlflowClient)
