"""What autologging costs a training: bare, as MLflow is, asynchronous, and in the background.

    python benchmarks/autologging.py [--rounds N] [--libraries lightgbm,xgboost,sklearn]

Each round trains once in each way, at each delay that a proxy adds to requests, and the ratios are
of times in the same round. In the rows "away", the server is away as soon as the run exists.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mlflow_iap_callbacks.local import LocalCloud, MlflowServer

_WAYS = ("bare", "mlflow", "asynchronous", "background")
_DELAYS = (0.0, 0.06, 0.25)
_AWAY = -1.0  # in place of a delay
_ROWS, _FEATURES, _ROUNDS = 20_000, 40, 100


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--libraries", default="lightgbm,xgboost,sklearn")
    parser.add_argument("--no-models", action="store_true")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        MlflowServer(Path(folder) / "server") as server,
        LocalCloud(server.url) as cloud,
    ):
        for library in given.libraries.split(","):
            print(f"\n{library}, seconds of the training, and ratio to the bare one")
            for delay in (*_DELAYS, _AWAY):
                ways = _WAYS if delay != _AWAY else ("bare", "background")
                seconds: dict[str, list[float]] = defaultdict(list)
                for _ in range(given.rounds):
                    for way in ways:
                        measured = _measure(cloud, library, way, delay, folder, given.no_models)
                        seconds[way].append(measured)
                print(_row(delay, seconds), flush=True)


def _row(delay: float, seconds: dict[str, list[float]]) -> str:
    cells = []
    for way, found in seconds.items():
        pairs = zip(found, seconds["bare"], strict=True)
        ratio = statistics.median(each / bare for each, bare in pairs)
        cells.append(f"{way} {statistics.median(found):.2f} s ({ratio:.2f})")
    return f"{'away' if delay == _AWAY else f'{delay * 1000:.0f} ms':>7}  {'  '.join(cells)}"


def _measure(
    cloud: LocalCloud, library: str, way: str, delay: float, folder: str, no_models: bool
) -> float:
    cloud.delay = max(0.0, delay)
    variables = {
        **{name: text for name, text in os.environ.items() if not name.startswith("MLFLOW_")},
        **cloud.environment(),
        "MLFLOW_IAP_OUTBOX": f"{folder}/outbox-{uuid.uuid4().hex}",
        "MLFLOW_TRACKING_AUTH": "iap",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ASYNC_LOGGING": str(way == "asynchronous").lower(),
        "PYTHONWARNINGS": "ignore",
    }
    arguments = [sys.executable, __file__, library, way, str(no_models)]
    with subprocess.Popen(
        arguments,
        env=variables,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready"):
                if delay == _AWAY:
                    cloud.fault("answer", status=503, times=0)
                process.stdin.write("\n")
                process.stdin.flush()
            if line.startswith("{"):
                cloud.clear_faults()
                return float(json.loads(line)["seconds"])
    raise RuntimeError(f"{library} {way} failed.")


def _work(library: str, way: str, no_models: bool) -> None:
    """Train in this process, as a worker."""
    import mlflow

    if way == "background":
        from mlflow_iap_callbacks import log_in_background

        log_in_background()
    train = _training(library)
    if way != "bare":
        mlflow.set_experiment(f"{library}-{way}")
        getattr(mlflow, library).autolog(log_models=not no_models, silent=True)
        train(2)  # imports, connections and tokens are needed only once
        mlflow.flush_async_logging()
    run = nullcontext() if way == "bare" else mlflow.start_run()
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    with run:
        train(_ROUNDS)
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


def _training(library: str) -> Callable[[int], Any]:
    import numpy as np

    random = np.random.default_rng(0)
    x = random.normal(size=(_ROWS, _FEATURES))
    y = (x[:, :5].sum(axis=1) + random.normal(size=_ROWS) > 0).astype(int)
    if library == "lightgbm":
        import lightgbm as lgb

        data = lgb.Dataset(x, y, free_raw_data=False)
        params = {"objective": "binary", "metric": ["auc", "binary_logloss"], "num_threads": 1}
        return lambda rounds: lgb.train({**params, "verbosity": -1}, data, rounds, [data])
    if library == "xgboost":
        import xgboost as xgb

        matrix = xgb.DMatrix(x, y)
        options = {"objective": "binary:logistic", "nthread": 1}
        return lambda rounds: xgb.train(
            options, matrix, rounds, evals=[(matrix, "train")], verbose_eval=False
        )
    from sklearn.ensemble import GradientBoostingClassifier

    return lambda rounds: GradientBoostingClassifier(n_estimators=rounds // 10 + 1).fit(x, y)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[2] in _WAYS:
        _work(sys.argv[1], sys.argv[2], sys.argv[3] == "True")
    else:
        main()
