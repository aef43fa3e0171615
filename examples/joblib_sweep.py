"""Run one study on joblib's processes (loky), with a run for each trial.

Works unchanged with a real IAP and with a local one:

    mlflow-iap local -- python examples/joblib_sweep.py
    python examples/joblib_sweep.py --storage mysql+pymysql://...

By default the study is stored in a file of Optuna's journal storage, and continues when this is
started again.
"""

from __future__ import annotations

import argparse

import optuna
from joblib import Parallel, delayed
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sklearn.datasets import load_wine
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mlflow_iap_callbacks import IAPMLflowCallback


def open_storage(storage: str) -> str | JournalStorage:
    return storage if "://" in storage else JournalStorage(JournalFileBackend(storage))


def objective(trial: optuna.Trial) -> float:
    features, target = load_wine(return_X_y=True)
    model = SVC(
        C=trial.suggest_float("C", 1e-3, 1e3, log=True),
        kernel=trial.suggest_categorical("kernel", ["linear", "rbf", "sigmoid"]),
    )
    scores = cross_val_score(make_pipeline(StandardScaler(), model), features, target)
    trial.set_user_attr("worst_fold", float(scores.min()))
    return float(scores.mean())


def work(study_name: str, storage: str, trials: int, callback: IAPMLflowCallback) -> None:
    study = optuna.load_study(study_name=study_name, storage=open_storage(storage))
    study.optimize(objective, trials, callbacks=[callback])
    callback.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--storage", default="joblib.journal", help="URL of a database, or a path")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=8, help="number of trials per worker")
    parser.add_argument("--study", default="joblib")
    arguments = parser.parse_args()

    with IAPMLflowCallback() as callback:
        study = optuna.create_study(
            study_name=arguments.study,
            storage=open_storage(arguments.storage),
            load_if_exists=True,
            direction="maximize",
        )
        job = delayed(work)(study.study_name, arguments.storage, arguments.trials, callback)
        Parallel(n_jobs=arguments.workers)(job for _ in range(arguments.workers))
        callback.sync(study)  # trials of workers that died
        print(f"trials: {len(study.trials)}, best value: {study.best_value:.4f}")


if __name__ == "__main__":
    main()
