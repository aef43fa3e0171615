"""Trainings with MLflow's autologging. Libraries are imported where they are used."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from contender import Contender
from trainings import classes

Train = Callable[[int], object]


@dataclass
class _InRun(Contender):
    """A training in a run that is started before the time is measured.

    Without a server, no run can be started: neither by MLflow, nor in the background.
    """

    def warm_up(self) -> None:
        import mlflow

        super().warm_up()
        mlflow.flush_async_logging()
        mlflow.start_run()


def _contender(
    experiment: str, *, training: Callable[[], Train], library: str, way: str, has_model: bool
) -> Contender:
    import mlflow

    if way == "ours":
        from mlflow_iap_callbacks import log_in_background

        log_in_background()
    os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = str(way == "mlflow, async").lower()
    mlflow.set_experiment(experiment)
    getattr(mlflow, library).autolog(log_models=has_model, silent=True)
    train = training()

    def run(rounds: int) -> None:
        train(rounds)
        mlflow.end_run()

    return _InRun(run, mlflow.flush_async_logging)


def _without(_: str, *, training: Callable[[], Train]) -> Contender:
    train = training()

    def run(rounds: int) -> None:
        train(rounds)

    return Contender(run)


def _lightgbm() -> Train:
    import lightgbm as lgb

    data = lgb.Dataset(*classes(), free_raw_data=False)  # autolog reads the raw data
    params: dict[str, Any] = {"objective": "binary", "metric": ["auc", "binary_logloss"]}
    params |= {"num_threads": 1, "verbosity": -1}
    return lambda rounds: lgb.train(params, data, rounds, [data])


def _xgboost() -> Train:
    import xgboost as xgb

    data = xgb.DMatrix(*classes())
    params = {"objective": "binary:logistic", "nthread": 1}
    return lambda rounds: xgb.train(
        params, data, rounds, evals=[(data, "train")], verbose_eval=False
    )


def _sklearn() -> Train:
    from sklearn.ensemble import GradientBoostingClassifier

    x, y = classes()
    # Its rounds take ten times as long.
    return lambda rounds: GradientBoostingClassifier(n_estimators=rounds // 10 + 1).fit(x, y)


def _ways(
    training: Callable[[], Train], library: str, *, has_model: bool = False
) -> dict[str, Callable[[str], Contender]]:
    ways = {
        way: partial(_contender, training=training, library=library, way=way, has_model=has_model)
        for way in ("mlflow", "mlflow, async", "ours")
    }
    return {"none": partial(_without, training=training), **ways}


CONTENDERS = {
    "LightGBM": _ways(_lightgbm, "lightgbm"),
    "LightGBM with its model": _ways(_lightgbm, "lightgbm", has_model=True),
    "XGBoost": _ways(_xgboost, "xgboost"),
    "scikit-learn": _ways(_sklearn, "sklearn"),
}
