"""Autologged trainings whose processes are killed at random moments, and what they had logged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

# Each training notes in a file what it has logged, after the call has returned.
IMPORTS = """
import json, multiprocessing, os, random, sys, threading
import lightgbm as lgb, mlflow, numpy as np
from mlflow_iap_callbacks import log_in_background
from mlflow_iap_callbacks.background import tracking_store
from mlflow_iap_callbacks.background.artifacts import BackgroundArtifacts
from mlflow_iap_callbacks.background.tracking_store import BackgroundStore
from mlflow_iap_callbacks.delivery.sender import is_delivering

NAME, NOTES = sys.argv[1:3]
log_in_background()
fork = multiprocessing.get_context("fork")

def note(*lines):
    if not is_delivering():
        file = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, "".join(json.dumps(line) + "\\n" for line in lines).encode())
        os.close(file)

class Noted(BackgroundStore):
    def create_run(self, *args, **kwargs):
        run = super().create_run(*args, **kwargs)
        note(("run", run.info.run_id))
        return run

    def log_batch(self, run_id, metrics, params, tags):
        super().log_batch(run_id, metrics, params, tags)
        note(*(("metric", run_id, each.key, each.step, each.value, each.timestamp)
               for each in metrics),
             *(("param", run_id, each.key, each.value) for each in params),
             *(("tag", run_id, each.key, each.value) for each in tags))

def log_artifact(self, path, to=None, inner=BackgroundArtifacts.log_artifact):
    inner(self, path, to)
    note(("artifact", self._run_id, os.path.join(to or "", os.path.basename(path))))

tracking_store.BackgroundStore = Noted
BackgroundArtifacts.log_artifact = log_artifact
"""

# Two at a time.
VICTIMS = """
rng = random.Random(int(sys.argv[3]))
kills = int(sys.argv[4])
mlflow.set_experiment(NAME)
two = threading.Semaphore(2)
x = np.random.default_rng(0).random((200, 4))

def train(begun):
    mlflow.lightgbm.autolog(log_models=False)
    begun.set()
    while True:
        data = lgb.Dataset(x, x[:, 0])
        params = {"verbosity": -1, "num_threads": 1}
        lgb.train(params, data, 20, [lgb.Dataset(x, x[:, 0], reference=data)])

def kill(moment):
    with two:
        begun = fork.Event()
        process = fork.Process(target=train, args=(begun,))
        process.start()
        begun.wait()
        process.join(moment)
        process.kill()
        process.join()

killers = [threading.Thread(target=kill, args=(rng.uniform(0.3, 6.0),)) for _ in range(kills)]
for killer in killers: killer.start()
for killer in killers: killer.join()
"""

# The next ordinary process on the machine.
NEXT = """
mlflow.set_experiment(NAME)
with mlflow.start_run(run_name="next"):
    mlflow.log_metric("m", 1)
"""


def wrong(client: MlflowClient, experiment_name: str, notes: Path) -> list[str]:
    """Return what was logged before a kill and is not in MLflow once."""
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    experiment = client.get_experiment_by_name(experiment_name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    seen = Counter(fact for run in runs for fact in _facts(client, run))
    tags = {(run_id, key): value for kind, run_id, key, value in _of(lines, "tag")}
    expected = {tuple(line) for line in lines if line[0] != "tag"}
    expected |= {("tag", *tag, value) for tag, value in tags.items()}  # only the last values
    return [f"{fact} is there {seen[fact]} times" for fact in expected if seen[fact] != 1]


def _of(lines: list[list[Any]], kind: str) -> list[list[Any]]:
    return [line for line in lines if line[0] == kind]


def _facts(client: MlflowClient, run: Any) -> list[tuple[Any, ...]]:
    run_id = run.info.run_id
    points = [
        ("metric", run_id, key, point.step, point.value, point.timestamp)
        for key in run.data.metrics
        for point in client.get_metric_history(run_id, key)
    ]
    return [
        ("run", run_id),
        *points,
        *(("param", run_id, *param) for param in run.data.params.items()),
        *(("tag", run_id, *tag) for tag in run.data.tags.items()),
        *(("artifact", run_id, path) for path in _paths(client, run_id)),
    ]


def _paths(client: MlflowClient, run_id: str, folder: str | None = None) -> Iterator[str]:
    for each in client.list_artifacts(run_id, folder):
        if each.is_dir:
            yield from _paths(client, run_id, each.path)
        else:
            yield each.path
