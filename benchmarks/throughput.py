"""Many points for one run: four metrics per append, or a simple loop of full requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from contender import Contender, flush

_KEYS = ("a", "b", "c", "d")
_BATCH = 1_000  # MLflow's limit for metrics in one request


def _ours(experiment: str) -> Contender:
    import optuna

    from mlflow_iap_callbacks import IAPMLflowCallback

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name=experiment)
    callback = IAPMLflowCallback()

    def run(points: int) -> None:
        handle = callback.run(study.ask())
        for step, values in _appends(points):
            handle.log_metrics(values, step=step)

    return Contender(run, lambda: flush(callback, timeout=600.0))


def _log_batch(experiment: str) -> Contender:
    from mlflow.entities import Metric

    from mlflow_iap_callbacks import IAPMlflowClient

    client = IAPMlflowClient()
    experiment_id = client.create_experiment(experiment)

    def run(points: int) -> None:
        run_id = client.create_run(experiment_id).info.run_id
        batch: list[Metric] = []
        for step, values in _appends(points):
            now = int(time.time() * 1000)
            batch += [Metric(key, value, now, step) for key, value in values.items()]
            if len(batch) == _BATCH:
                client.log_batch(run_id, batch)
                batch = []
        client.log_batch(run_id, batch)

    return Contender(run)


def _appends(points: int) -> Iterator[tuple[int, dict[str, float]]]:
    for step in range(points // len(_KEYS)):
        yield step, dict.fromkeys(_KEYS, step / 7)


CONTENDERS: dict[str, Callable[[str], Contender]] = {"ours": _ours, "log_batch": _log_batch}
