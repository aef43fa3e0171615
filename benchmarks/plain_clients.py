"""Plain clients, several at once, that send the three requests of each trial of a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from contender import Contender
from sweeps import PARAMS


def _clients(experiment: str, *, at_once: int) -> Contender:
    from mlflow.entities import Metric, Param

    from mlflow_iap_callbacks import IAPMlflowClient

    client = IAPMlflowClient()
    experiment_id = client.create_experiment(experiment)
    params = [Param(f"x{number}", "0.5") for number in range(PARAMS)]

    def send(number: int) -> None:
        run_id = client.create_run(experiment_id, run_name=str(number)).info.run_id
        value = Metric("value", 0.5, int(time.time() * 1000), 0)
        client.log_batch(run_id, [value], params)
        client.update_run(run_id, status="FINISHED")

    def run(trials: int) -> None:
        with ThreadPoolExecutor(at_once) as executor:
            list(executor.map(send, range(trials)))

    return Contender(run)


CONTENDERS: dict[str, Callable[[str], Contender]] = {
    f"{at_once} plain clients": partial(_clients, at_once=at_once) for at_once in (8, 16, 32)
}
