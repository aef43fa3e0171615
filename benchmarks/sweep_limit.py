"""How fast a server can take the trials of a sweep, and how fast this package delivers them.

    python benchmarks/sweep_limit.py [--trials N] [--rounds N]

Plain clients, several at once, send the three requests of each trial: create the run, log its
params and value, end it. The same trials are then delivered by the callback. The server, a proxy
that adds 60 ms to each request, and the clients share one machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlflow_iap_callbacks.local import LocalCloud, MlflowServer

_DELAY = 0.06  # seconds
_CLIENTS = (8, 16, 32)
_PARAMS = 8
_LONGEST = 1800.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        print(_plain(int(given.worker), given.trials) if given.worker != "ours" else _ours(given))
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        MlflowServer(Path(folder, "server")) as server,
        LocalCloud(server.url) as cloud,
    ):
        cloud.delay = _DELAY
        for _ in range(given.rounds):
            seconds = {
                each: _measure(cloud, each, given.trials, folder)
                for each in (*map(str, _CLIENTS), "ours")
            }
            best = min(seconds[str(clients)] for clients in _CLIENTS)
            for clients in _CLIENTS:
                print(f"{clients} plain clients: {seconds[str(clients)]:.1f} s")
            print(
                f"this package: {seconds['ours']:.1f} s, {seconds['ours'] / best:.2f} of the best"
            )


def _measure(cloud: LocalCloud, worker: str, trials: int, folder: str) -> float:
    command = [sys.executable, __file__, "--worker", worker, "--trials", str(trials)]
    outbox = Path(folder, uuid.uuid4().hex)
    environment = {**os.environ, **cloud.environment(), "MLFLOW_IAP_OUTBOX": str(outbox)}
    done = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, timeout=_LONGEST
    )
    return float(done.stdout.splitlines()[-1])


def _plain(clients: int, trials: int) -> float:
    from mlflow.entities import Metric, Param

    from mlflow_iap_callbacks import IAPMlflowClient

    client = IAPMlflowClient()
    experiment = client.create_experiment(uuid.uuid4().hex)
    params = [Param(f"x{n}", "0.5") for n in range(_PARAMS)]

    def send(number: int) -> None:
        run_id = client.create_run(experiment, run_name=str(number)).info.run_id
        client.log_batch(run_id, [Metric("value", 0.5, 0, 0)], params)
        client.update_run(run_id, status="FINISHED")

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as executor:
        list(executor.map(send, range(trials)))
    return time.monotonic() - began


def _ours(given: argparse.Namespace) -> float:
    import optuna

    from mlflow_iap_callbacks import IAPMLflowCallback

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    callback = IAPMLflowCallback()
    study = optuna.create_study(
        study_name=uuid.uuid4().hex, sampler=optuna.samplers.RandomSampler(0)
    )

    def objective(trial: optuna.Trial) -> float:
        values = [trial.suggest_float(f"x{n}", 0, 1) for n in range(_PARAMS)]
        time.sleep(0.01)
        return sum(values)

    began = time.monotonic()
    study.optimize(objective, given.trials, callbacks=[callback])
    if not callback.flush(None):
        raise RuntimeError("Not everything was delivered.")
    return time.monotonic() - began


if __name__ == "__main__":
    main()
