"""Processor time of each step on a point's way to the server, beside MLflow's own ``log_batch``.

python benchmarks/step_cost.py --quick  # shows it; compare.py writes it
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from idle_server import RUN_ID, idle_server
from part import Effort, Findings, Part, show_alone
from rich.console import Console
from tables import US, Table

_NOTE = """\
One process sends points of one run, four in each record, to a server in another process that does \
nothing. First each step runs on its own. Then all of them run as they do in training, and in turn \
MLflow's client sends the same points in full requests. The processor time is that of the sending \
process, whose training has to share its interpreter with them."""

_RECORDS = 25_000
_NAMES = ("training l2", "training auc", "valid l2", "valid auc")
_BATCH = 1_000  # MLflow's limit for metrics in one request
_NOW = 1_700_000_000_000
_ENDPOINT = "/api/2.0/mlflow/runs/log-batch"


@dataclass(frozen=True)
class StepCosts:
    """Processor time in microseconds per point.

    Attributes:
        our_steps: by step of this package.
        mlflow_steps: by step of MLflow's client.
        wholes: of this package and of MLflow's client, as a whole, in each turn.
    """

    our_steps: Mapping[str, float]
    mlflow_steps: Mapping[str, float]
    wholes: Sequence[tuple[float, float]]


def _metrics(n: int) -> dict[str, float]:
    return {name: n / (7 + 2 * i) for i, name in enumerate(_NAMES)}


class _Steps:
    """Processor time by step, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        took = time.process_time() - began
        self.seconds[name] = self.seconds.get(name, 0.0) + took


def _our_steps(uri: str, records: int, folder: Path) -> dict[str, float]:
    from mlflow.store.tracking.rest_store import RestStore

    from mlflow_iap_callbacks import IAPMlflowClient
    from mlflow_iap_callbacks.delivery.log_batch import Batch
    from mlflow_iap_callbacks.delivery.names import Names
    from mlflow_iap_callbacks.iap.json_post import post_json
    from mlflow_iap_callbacks.iap.log_batch_request import log_batch_body
    from mlflow_iap_callbacks.outbox import Outbox

    steps = _Steps()
    store = IAPMlflowClient(uri)._tracking_client.store
    assert isinstance(store, RestStore)
    outbox = Outbox(folder / "steps.sqlite", uri)
    run = outbox.begin("key", "id:0")
    names = Names(lambda: False, None)
    content: dict[str, object] = {"key": "key", "experiment": "id:0", "name": None, "tags": {}}
    outbox.intake.append(run.number, "start", content)
    metrics = [_metrics(n) for n in range(records)]
    post_json(store.get_host_creds(), _ENDPOINT, b"{}")  # connects
    with steps.step("append to the intake"):
        for n in range(records):
            outbox.intake.append(run.number, "metrics", (n, _NOW + n, metrics[n]))
    with steps.step("take from the intake"):
        outbox.collect()
    outbox.settle(run, outbox.read(run, outbox.last_seq)[:1])
    while True:
        with steps.step("read"):
            waiting = outbox.read(run, outbox.last_seq)
        if not waiting:
            break
        with steps.step("combine"):
            batch = Batch(0, names)
            for record in waiting:
                if not batch.takes(record):
                    break
            points = [entity for entity in batch.entities() if isinstance(entity, tuple)]
        with steps.step("encode"):
            body = log_batch_body(RUN_ID, points, [], [])
        assert body is not None
        with steps.step("request"):
            post_json(store.get_host_creds(), _ENDPOINT, body)
        with steps.step("settle"):
            outbox.settle(run, batch.records)
    outbox.close()
    return steps.seconds


def _mlflow_steps(uri: str, records: int) -> dict[str, float]:
    import json

    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.protos.service_pb2 import LogBatch
    from mlflow.utils.proto_json_utils import message_to_json
    from mlflow.utils.rest_utils import http_request

    steps = _Steps()
    creds = MlflowClient(uri)._tracking_client.store.get_host_creds()
    http_request(creds, _ENDPOINT, "POST", json={})  # connects
    for rows in _batches(records):
        with steps.step("entities, twice"):
            given = [Metric(*row) for row in rows]
            metrics = [Metric(each.key, each.value, each.timestamp, each.step) for each in given]
        with steps.step("protobuf"):
            protos = [metric.to_proto() for metric in metrics]
            message = LogBatch(metrics=protos, params=[], tags=[], run_id=RUN_ID)
        with steps.step("indented JSON"):
            text = message_to_json(message)
        with steps.step("parse it again"):
            content = json.loads(text)
        with steps.step("JSON and request"):
            http_request(creds, _ENDPOINT, "POST", json=content)
    return steps.seconds


def _batches(records: int) -> Iterator[list[tuple[str, float, int, int]]]:
    size = _BATCH // len(_NAMES)
    for first in range(0, records, size):
        yield [
            (name, value, _NOW + n, n)
            for n in range(first, first + size)
            for name, value in _metrics(n).items()
        ]


def _ours(uri: str, records: int) -> float:
    from mlflow_iap_callbacks import IAPRun

    run = IAPRun(RUN_ID, tracking_uri=uri)
    metrics = [_metrics(n) for n in range(records)]
    assert run.flush()
    began = time.process_time()
    for n in range(records):
        run.log_metrics(metrics[n], step=n)
    assert run.flush(600.0)
    return time.process_time() - began


def _mlflow(uri: str, records: int) -> float:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(uri)
    batches = list(_batches(records))
    began = time.process_time()
    for rows in batches:
        client.log_batch(RUN_ID, [Metric(*row) for row in rows])
    return time.process_time() - began


def step_costs(url: str, records: int, turns: int) -> StepCosts:
    """Measure all steps, then both as a whole, in turns. This sets variables of the process."""
    to_us = 1e6 / (records * len(_NAMES))
    with tempfile.TemporaryDirectory() as name:
        os.environ["MLFLOW_IAP_OUTBOX"] = str(Path(name, "outbox"))
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        our_steps = _our_steps(url, records, Path(name))
        mlflow_steps = _mlflow_steps(url, records)
        wholes = [(_ours(url, records), _mlflow(url, records)) for _ in range(turns)]
    return StepCosts(
        {step: seconds * to_us for step, seconds in our_steps.items()},
        {step: seconds * to_us for step, seconds in mlflow_steps.items()},
        [(ours * to_us, mlflow * to_us) for ours, mlflow in wholes],
    )


def _measure(effort: Effort, console: Console) -> Findings:
    records = _RECORDS // 10 if effort.is_quick else _RECORDS
    spawn = multiprocessing.get_context("spawn")
    with idle_server() as server, ProcessPoolExecutor(1, mp_context=spawn) as process:
        costs = process.submit(step_costs, server.url, records, effort.rounds).result()
        received = server.points()
    # Both send all points once step by step, and once in each turn.
    sent = 2 * (1 + effort.rounds) * records * len(_NAMES)
    wrong = [] if received == sent else [f"steps: {received:,} points received of {sent:,}"]
    tables = [_steps_table(costs), _wholes_table(costs)]
    return Findings(tables, {"steps": _sentence(costs)}, wrong)


def _steps_table(costs: StepCosts) -> Table:
    rows = []
    for name, steps in (("ours", costs.our_steps), ("log_batch", costs.mlflow_steps)):
        for step, microseconds in {**steps, "together": sum(steps.values())}.items():
            rows.append([name, step, f"{microseconds:.2f}"])
    return Table("Step by step", ["", "step", f"{US} per point"], rows)


def _wholes_table(costs: StepCosts) -> Table:
    heads = ["turn", f"ours, {US} per point", f"log_batch, {US} per point", "log_batch / ours"]
    rows = [
        [str(turn), f"{ours:.1f}", f"{mlflow:.1f}", f"{mlflow / ours:.2f}"]
        for turn, (ours, mlflow) in enumerate(costs.wholes, 1)
    ]
    return Table("As a whole", heads, rows, names=1)


def _sentence(costs: StepCosts) -> str:
    ours, mlflow = (median(each) for each in zip(*costs.wholes, strict=True))
    ratio = median(mlflow / ours for ours, mlflow in costs.wholes)
    return (
        f"From the call to the server, a point takes {ours:.1f} {US} of processor time. MLflow's "
        f"`log_batch` with 1,000 points in each request takes {mlflow:.1f} {US}, {ratio:.1f} times "
        "as much."
    )


PART = Part(
    "steps", "Processor time of a point, step by step", _NOTE, ("mlflow", "requests"), _measure
)

if __name__ == "__main__":
    show_alone(PART)
