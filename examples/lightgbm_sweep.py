"""Tune a LightGBM model with Optuna, with a run and its learning curves for each trial.

Works unchanged with a real IAP and with a local one:

    export MLFLOW_TRACKING_URI=https://HOST MLFLOW_TRACKING_AUTH=iap
    python examples/lightgbm_sweep.py

    mlflow-iap local -- python examples/lightgbm_sweep.py
"""

from __future__ import annotations

import argparse
import sys

import lightgbm as lgb
import mlflow
import optuna
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMLflowCallback


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--study", default="breast-cancer")
    arguments = parser.parse_args()

    features, target = load_breast_cancer(return_X_y=True)
    x_train, x_valid, y_train, y_valid = train_test_split(features, target, random_state=0)
    callback = IAPMLflowCallback()

    def objective(trial: optuna.Trial) -> float:
        params = {
            "objective": "binary",
            "metric": ["binary_logloss", "auc"],
            "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.3, log=True),
            "num_leaves": trial.suggest_int("num_leaves", 4, 64, log=True),
            "min_child_samples": trial.suggest_int("min_child_samples", 5, 50),
            "feature_fraction": trial.suggest_float("feature_fraction", 0.4, 1.0),
            "num_threads": 1,
            "verbosity": -1,
        }
        train = lgb.Dataset(x_train, y_train)
        booster = lgb.train(
            params,
            train,
            num_boost_round=arguments.rounds,
            valid_sets=[lgb.Dataset(x_valid, y_valid, reference=train)],
            valid_names=["valid"],
            callbacks=[
                lgb.early_stopping(30, first_metric_only=True, verbose=False),
                IAPLightGBMCallback(run=callback.run(trial)),
            ],
        )
        return float(booster.best_score["valid"]["binary_logloss"])

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=arguments.study, direction="minimize")
    study.optimize(
        objective,
        n_trials=arguments.trials,
        n_jobs=arguments.jobs,
        callbacks=[callback],
        show_progress_bar=sys.stderr.isatty(),
    )

    print(f"trials: {len(study.trials)}")
    print(f"best:   trial {study.best_trial.number}, logloss {study.best_value:.4f}")
    for name, value in study.best_params.items():
        print(f"        {name} = {value:.4g}")
    print(f"MLflow: {mlflow.get_tracking_uri()}")


if __name__ == "__main__":
    main()
