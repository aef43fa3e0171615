"""Run one study in several processes, with pruning and a run for each trial.

Works unchanged with a real IAP and with a local one:

    mlflow-iap local -- python examples/processes_sweep.py
    python examples/processes_sweep.py --storage mysql+pymysql://...

With a database that other machines can reach, start this on each of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile

import optuna
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

from mlflow_iap_callbacks import IAPMLflowCallback


def work(study_name: str, storage: str, trials: int, callback: IAPMLflowCallback) -> None:
    features, target = load_digits(return_X_y=True)
    x_train, x_valid, y_train, y_valid = train_test_split(features, target, random_state=0)

    def objective(trial: optuna.Trial) -> float:
        model = SGDClassifier(alpha=trial.suggest_float("alpha", 1e-6, 1.0, log=True))
        for epoch in range(20):
            model.partial_fit(x_train, y_train, range(10))
            trial.report(float(model.score(x_valid, y_valid)), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(model.score(x_valid, y_valid))

    study = optuna.load_study(
        study_name=study_name, storage=storage, pruner=optuna.pruners.MedianPruner(4, 4)
    )
    study.optimize(objective, trials, callbacks=[callback])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--storage", help="URL of a database; default: a temporary SQLite file")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=8, help="number of trials per worker")
    parser.add_argument("--study", default="processes")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder, IAPMLflowCallback() as callback:
        storage = arguments.storage or f"sqlite:///{folder}/study.db"
        study = optuna.create_study(
            study_name=arguments.study, storage=storage, load_if_exists=True, direction="maximize"
        )
        job = (study.study_name, storage, arguments.trials, callback)
        spawn = multiprocessing.get_context("spawn")
        workers = [spawn.Process(target=work, args=job) for _ in range(arguments.workers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        callback.sync(study)  # trials of workers that died
        print(f"trials: {len(study.trials)}, best value: {study.best_value:.4f}")


if __name__ == "__main__":
    main()
