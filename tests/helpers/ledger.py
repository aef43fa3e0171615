"""Clients that log numbered points and params, and a comparison of what was acknowledged."""

from __future__ import annotations

import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlflow.entities import Metric, Param

from database_server import DatabaseServer
from mlflow_iap_callbacks import IAPMlflowClient
from waiting import wait_until

_POINTS = 3  # of a batch
_BATCHES = 20  # of a run


class Ledger:
    """Threads that log small batches, each to one run after the other, until their block ends.

    Args:
        clients: number of threads.
    """

    def __init__(self, clients: int) -> None:
        self._experiment_id = IAPMlflowClient().create_experiment("ledger")
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self._begun: list[str] = []  # names of runs
        self._runs: dict[str, str] = {}  # their ids by name, as the server returned them
        self._batches: Counter[str] = Counter()  # acknowledged, by run id
        self._ended: set[str] = set()
        self._logging = [self._pool.submit(self._log, number) for number in range(clients)]

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()

    @property
    def figures(self) -> dict[str, int]:
        """Number of acknowledged batches."""
        return {"runs": len(self._runs), "batches": self._batches.total()}

    def wait_for_more(self, batches: int) -> None:
        """Return when each client has had this many more batches acknowledged."""
        before = [self._of(number) for number in range(len(self._logging))]

        def is_there() -> bool:
            for logging in self._logging:
                assert not logging.done() or logging.result() is None
            return all(self._of(n) >= had + batches for n, had in enumerate(before))

        wait_until(is_there, f"{batches} more batches of each client", 120)

    def wrong(self, server: DatabaseServer, database: str) -> list[str]:
        """The differences between acknowledgements and the database, and what is there twice."""
        for logging in self._logging:
            logging.result()  # raises an error that no client should see
        said = _Said(server, database, self._experiment_id)
        found = [f"run {name} is there twice" for name in _repeated(said.names)]
        found += [f"run {name} is not there" for name in self._begun if name not in said.names]
        for run_id in self._runs.values():
            batches = self._batches[run_id]
            steps = [step for step, _ in said.points[run_id]]
            found += [f"run {run_id} has step {step} twice" for step in _repeated(steps)]
            points = [(step, _value(step)) for step in range(batches * _POINTS)]
            params = [(f"p{number}", str(number)) for number in range(batches)]
            for kind, expected, seen in (
                ("points", points, sorted(said.points[run_id])),
                ("params", params, said.params[run_id]),
                ("latest point", points[-1:], said.latest[run_id]),
            ):
                if set(expected) != set(seen):
                    found.append(f"run {run_id} has the {kind} {seen}, not {expected}")
            status = "FINISHED" if run_id in self._ended else "RUNNING"
            if said.statuses.get(run_id) != status:
                found.append(f"run {run_id} is {said.statuses.get(run_id)}, not {status}")
        return found

    def _of(self, number: int) -> int:
        """The acknowledged batches of one client."""
        runs = list(self._runs.items())
        return sum(self._batches[run_id] for name, run_id in runs if name.startswith(f"{number}-"))

    def _log(self, number: int) -> None:
        client = IAPMlflowClient()
        for serial in itertools.count():
            name = f"{number}-{serial}"
            self._begun.append(name)
            run_id = client.create_run(self._experiment_id, run_name=name).info.run_id
            self._runs[name] = run_id
            for batch in range(_BATCHES):
                if self._over.is_set():
                    return
                steps = range(batch * _POINTS, (batch + 1) * _POINTS)
                points = [Metric("value", _value(step), 1, step) for step in steps]
                client.log_batch(run_id, points, [Param(f"p{batch}", str(batch))])
                self._batches[run_id] += 1
            client.update_run(run_id, "FINISHED")
            self._ended.add(run_id)


class _Said:
    """An experiment's runs in a database."""

    def __init__(self, server: DatabaseServer, database: str, experiment_id: str) -> None:
        runs = server.query(
            "SELECT name, run_uuid, status FROM runs WHERE experiment_id = %s",
            experiment_id,
            database=database,
        )
        self.names = [name for name, _, _ in runs]
        self.statuses = {run_id: status for _, run_id, status in runs}
        self.points, self.latest, self.params = (
            _by_run(server.query(f"SELECT run_uuid, {columns} FROM {table}", database=database))
            for columns, table in (
                ("step, value", "metrics"),
                ("step, value", "latest_metrics"),
                ('"key", value', "params"),
            )
        )


def _by_run(rows: Iterable[tuple[str, Any, Any]]) -> dict[str, list[tuple[Any, Any]]]:
    found = defaultdict(list)
    for run_id, name, value in rows:
        found[run_id].append((name, value))
    return found


def _repeated(values: Iterable[object]) -> list[object]:
    return [value for value, count in Counter(values).items() if count > 1]


def _value(step: int) -> float:
    return step / 8
