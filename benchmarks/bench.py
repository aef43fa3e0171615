"""Runs workers, one after the other, with a server behind a local IAP."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from delays import DOWN

from mlflow_iap_callbacks.local import LocalCloud, MlflowServer

_WORKER = Path(__file__).with_name("worker.py")
_LONGEST = 1800.0  # seconds until a worker counts as hanging


@dataclass(frozen=True)
class Measurement:
    """The result of a worker.

    Attributes:
        delay: seconds added to each request; `DOWN` if the server is unavailable during training.
        train: seconds of the training itself.
        deliver: seconds from then until the server had everything.
        cpu: the worker's processor time in both, in seconds.
        peak_mb: the worker's peak memory.
        requests: how many IAP received in both.
        points: number of its metric points on the server.
        events: how long each call of the callback took, in seconds.
    """

    case: str
    name: str
    delay: float
    round: int
    train: float
    deliver: float
    cpu: float
    peak_mb: float
    requests: int
    points: int
    events: tuple[float, ...]

    @property
    def total(self) -> float:
        """Seconds from the start of training until the server had everything."""
        return self.train + self.deliver


class Bench:
    """A real MLflow server behind a local IAP, in a folder."""

    def __init__(self, folder: Path, cloud: LocalCloud) -> None:
        self._folder = folder
        self._cloud = cloud

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[Bench]:
        with (
            tempfile.TemporaryDirectory() as name,
            MlflowServer(Path(name)) as server,
            LocalCloud(server.url) as cloud,
        ):
            yield cls(Path(name), cloud)

    def measure(self, case: str, name: str, *, delay: float, round: int, size: int) -> Measurement:
        """Run a worker.

        Raises:
            RuntimeError: if it fails; the message has the end of its output.
        """
        experiment = f"{case}-{name}-{uuid.uuid4().hex[:8]}"
        cloud = self._cloud
        cloud.delay = max(0.0, delay)
        with self._worker(case, name, experiment, str(size)) as worker:
            _read(worker)
            cloud.forget()
            if delay == DOWN:
                cloud.fault("answer", status=503, times=0)
            _go_on(worker)
            _read(worker)
            cloud.clear_faults()
            _go_on(worker)
            result = json.loads(_read(worker))
            requests = len(cloud.requests)
            # Before the worker exits, which may deliver more: it says that everything is delivered.
            points = self._points(experiment, since=result.pop("began"))
            _go_on(worker)
        return Measurement(
            case=case,
            name=name,
            delay=delay,
            round=round,
            requests=requests,
            points=points,
            events=tuple(result.pop("events")),
            **result,
        )

    @contextlib.contextmanager
    def _worker(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        own = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "GOOGLE_"))}
        with (
            tempfile.TemporaryDirectory() as outbox,
            tempfile.TemporaryFile("w+") as log,
            subprocess.Popen(
                [sys.executable, str(_WORKER), *arguments],
                env={
                    **own,
                    **self._cloud.environment(),
                    "MLFLOW_IAP_OUTBOX": outbox,
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "PYTHONWARNINGS": "ignore",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._folder,
            ) as process,
        ):
            timer = threading.Timer(_LONGEST, process.kill)
            timer.daemon = True
            timer.start()
            try:
                yield process
                failed = process.wait() != 0
            except (EOFError, BrokenPipeError):
                failed = True
            finally:
                timer.cancel()
                process.kill()
            if failed:
                log.seek(0)
                raise RuntimeError(f"{arguments[:2]} failed:\n{log.read()[-3000:]}")

    def _points(self, experiment: str, since: float) -> int:
        """Count the points of an experiment on the server, without the warm-up's, a study's own,
        and those of a training that are not evaluations."""
        query = """SELECT count(*) FROM metrics JOIN runs USING (run_uuid)
                   JOIN experiments USING (experiment_id)
                   WHERE experiments.name = ? AND metrics.timestamp >= ?
                   AND metrics.key NOT LIKE 'best%' AND metrics.key NOT LIKE 'trials.%'
                   AND metrics.key NOT IN ('seconds_per_iteration', 'stopped_iteration')"""
        with contextlib.closing(sqlite3.connect(self._folder / "mlflow.db")) as database:
            count: int = database.execute(query, (experiment, int(since * 1000))).fetchone()[0]
        return count


def _read(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise EOFError
    return line


def _go_on(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
