"""Processor time of each step on a point's way to the server, beside MLflow's own ``log_batch``.

    python benchmarks/step_cost.py

One process sends 100,000 points, four in each record, to a server that does nothing, in another
process. First each step runs on its own. Then all of them run as they do in training, and in turn
MLflow's client sends the same points in full requests. All figures are of this process, whose
training would have to share its interpreter with them.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

_RECORDS = 25_000
_NAMES = ("training l2", "training auc", "valid l2", "valid auc")
_POINTS = _RECORDS * len(_NAMES)
_BATCH = 1_000  # MLflow's limit for metrics in one request
_TURNS = 3
_RUN = "0" * 32
_NOW = 1_700_000_000_000
_ENDPOINT = "/api/2.0/mlflow/runs/log-batch"


class _Server(BaseHTTPRequestHandler):
    """Answers that every run exists and that everything was logged."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for each response
    _RUN = (
        b'{"run":{"info":{"run_id":"%s","experiment_id":"0","lifecycle_stage":"active"},"data":{}}}'
    )

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b"{}" if self.path.endswith("log-batch") else self._RUN % _RUN.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


def _serve(pipe: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    pipe.send(server.server_port)
    server.serve_forever()


@contextmanager
def _server() -> Iterator[str]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,))
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


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


def _our_steps(uri: str, folder: Path) -> dict[str, float]:
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
    metrics = [_metrics(n) for n in range(_RECORDS)]
    with steps.step("append to the intake"):
        for n in range(_RECORDS):
            outbox.intake.append(run.number, "metrics", (n, _NOW + n, metrics[n]))
    with steps.step("move to the database"):
        outbox.collect()
    outbox.settle(run, outbox.read(run, outbox.last_seq)[:1])
    while True:
        with steps.step("read"):
            records = outbox.read(run, outbox.last_seq)
        if not records:
            break
        with steps.step("combine"):
            batch = Batch(0, names)
            for record in records:
                if not batch.takes(record):
                    break
            points = [entity for entity in batch.entities() if isinstance(entity, tuple)]
        with steps.step("encode"):
            body = log_batch_body(_RUN, points, [], [])
        assert body is not None
        with steps.step("request"):
            post_json(store.get_host_creds(), _ENDPOINT, body)
        with steps.step("settle"):
            outbox.settle(run, batch.records)
    outbox.close()
    return steps.seconds


def _mlflow_steps(uri: str) -> dict[str, float]:
    import json

    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.protos.service_pb2 import LogBatch
    from mlflow.utils.proto_json_utils import message_to_json
    from mlflow.utils.rest_utils import http_request

    steps = _Steps()
    creds = MlflowClient(uri)._tracking_client.store.get_host_creds()
    for rows in _batches():
        with steps.step("entities, twice"):
            given = [Metric(*row) for row in rows]
            metrics = [Metric(each.key, each.value, each.timestamp, each.step) for each in given]
        with steps.step("protobuf"):
            protos = [metric.to_proto() for metric in metrics]
            message = LogBatch(metrics=protos, params=[], tags=[], run_id=_RUN)
        with steps.step("indented JSON"):
            text = message_to_json(message)
        with steps.step("parse it again"):
            content = json.loads(text)
        with steps.step("JSON and request"):
            http_request(creds, _ENDPOINT, "POST", json=content)
    return steps.seconds


def _batches() -> Iterator[list[tuple[str, float, int, int]]]:
    size = _BATCH // len(_NAMES)
    for first in range(0, _RECORDS, size):
        yield [
            (name, value, _NOW + n, n)
            for n in range(first, first + size)
            for name, value in _metrics(n).items()
        ]


def _ours(uri: str) -> float:
    from mlflow_iap_callbacks import IAPRun

    run = IAPRun(_RUN, tracking_uri=uri)
    metrics = [_metrics(n) for n in range(_RECORDS)]
    assert run.flush()
    began = time.process_time()
    for n in range(_RECORDS):
        run.log_metrics(metrics[n], step=n)
    assert run.flush(600.0)
    return time.process_time() - began


def _mlflow(uri: str) -> float:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(uri)
    batches = list(_batches())
    began = time.process_time()
    for rows in batches:
        client.log_batch(_RUN, [Metric(*row) for row in rows])
    return time.process_time() - began


def _show(title: str, steps: dict[str, float]) -> None:
    print(title)
    for name, seconds in {**steps, "together": sum(steps.values())}.items():
        print(f"  {name:24}{seconds / _POINTS * 1e6:7.2f} us a point")


def main() -> None:
    """Print all steps, then both as a whole, in turns."""
    with tempfile.TemporaryDirectory() as name, _server() as uri:
        os.environ["MLFLOW_IAP_OUTBOX"] = str(Path(name, "outbox"))
        _show("This package, step by step", _our_steps(uri, Path(name)))
        _show("MLflow's log_batch, step by step", _mlflow_steps(uri))
        contenders: dict[str, Callable[[str], float]] = {"ours": _ours, "log_batch": _mlflow}
        print("As a whole")
        for _ in range(_TURNS):
            seconds = {each: contender(uri) for each, contender in contenders.items()}
            costs = {each: took / _POINTS * 1e6 for each, took in seconds.items()}
            print(
                f"  ours {costs['ours']:.1f}, log_batch {costs['log_batch']:.1f} us a point:"
                f" a factor of {costs['log_batch'] / costs['ours']:.1f}"
            )


if __name__ == "__main__":
    main()
