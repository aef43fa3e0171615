"""Run one study on the workers of a Dask cluster, with a run for each trial.

Works unchanged with a real IAP and with a local one:

    mlflow-iap local -- python examples/dask_sweep.py
    python examples/dask_sweep.py --scheduler tcp://HOST:8786 --storage mysql+pymysql://...

On your own cluster, the workers need this package, the variables for MLflow, and a database that
all of them can reach. Without --scheduler, a cluster of local processes is started for the sweep.
"""

from __future__ import annotations

import argparse
import tempfile

import lightgbm as lgb
import optuna
from dask.distributed import Client, LocalCluster
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from mlflow_iap_callbacks import IAPLightGBMCallback, IAPMLflowCallback


def work(study_name: str, storage: str, trials: int, callback: IAPMLflowCallback) -> None:
    features, target = load_breast_cancer(return_X_y=True)
    x_train, x_valid, y_train, y_valid = train_test_split(features, target, random_state=0)

    def objective(trial: optuna.Trial) -> float:
        params = {
            "objective": "binary",
            "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.3, log=True),
            "num_leaves": trial.suggest_int("num_leaves", 4, 64, log=True),
            "num_threads": 1,
            "verbosity": -1,
        }
        train = lgb.Dataset(x_train, y_train)
        valid = lgb.Dataset(x_valid, y_valid, reference=train)
        logged = IAPLightGBMCallback(run=callback.run(trial))
        booster = lgb.train(params, train, 50, [valid], ["valid"], callbacks=[logged])
        return float(booster.best_score["valid"]["binary_logloss"])

    study = optuna.load_study(study_name=study_name, storage=storage)
    study.optimize(objective, trials, callbacks=[callback])
    callback.flush()  # Dask may end this worker afterwards


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scheduler", help="address of your own cluster")
    parser.add_argument("--storage", help="URL of a database; default: a temporary SQLite file")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=6, help="number of trials per worker")
    parser.add_argument("--study", default="dask")
    arguments = parser.parse_args()

    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=0 if arguments.scheduler else arguments.workers) as local,
        Client(arguments.scheduler or local) as client,
        IAPMLflowCallback() as callback,
    ):
        storage = arguments.storage or f"sqlite:///{folder}/study.db"
        study = optuna.create_study(
            study_name=arguments.study, storage=storage, load_if_exists=True
        )
        jobs = [(study.study_name, storage, arguments.trials, callback)] * arguments.workers
        client.gather([client.submit(work, *job, pure=False) for job in jobs])
        callback.sync(study)  # trials of workers that died
        print(f"trials: {len(study.trials)}, best value: {study.best_value:.4f}")


if __name__ == "__main__":
    main()
