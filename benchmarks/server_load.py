"""Measure the deployed server, with single settings changed, and MLflow's defaults.

    PYTHONPATH=tests/helpers python benchmarks/server_load.py          # writes server_load.md
    PYTHONPATH=tests/helpers python benchmarks/server_load.py --quick  # quick check; writes nothing

Needs Debian's mariadb-server, and 8 GB of memory for ten servers at the same time. The row of
mysqlclient is included if that is installed. Exits with 1 if the database does not have
exactly the points that were acknowledged.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from load_client import Load
from load_servers import Cell, Change, Server, Stage
from load_tables import (
    Summary,
    clients_table,
    is_carried,
    markdown,
    settings_table,
    trainers_table,
)
from rich.console import Console
from tables import show, wide_console

_C_DRIVER = "mysqlclient"
_CHANGES = [
    Change("1 worker", {"MLFLOW_WORKERS": "1"}),
    Change("4 workers", {"MLFLOW_WORKERS": "4"}),
    Change("asyncio's loop", arguments=["--uvicorn=--loop asyncio"]),
    Change("h11", arguments=["--uvicorn=--http h11"]),
    Change("access log", arguments=["--uvicorn=--access-log"]),
    Change(_C_DRIVER, arguments=["--driver=mysqldb"]),
    Change(
        "MLflow's 15 connections",
        {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "5", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "10"},
    ),
    Change("job execution", arguments=["--jobs"]),
    Change("no gate", is_gated=False),
]
_MLFLOW_STORE = Change("MLflow's store", application="mlflow_store:create_app")
_STARTED_AT_ONCE = 2
_POINTS = 10  # points in a client's batch
# What the sender combines in 5 s, its shortest interval: 4 curves with 10 rounds a second.
_TRAINER_POINTS, _PERIOD = 200, 5.0


@dataclass(frozen=True)
class Plan:
    """What is measured: the numbers of clients, of rounds, and of seconds for each."""

    clients: tuple[int, ...] = (1, 8, 32, 64, 128)
    rounds: int = 2
    seconds: float = 4.0
    changed_rounds: int = 2
    trainers: tuple[int, ...] = (32, 64, 96, 128, 192, 256)
    changed_at: int = 8


class Measurement:
    """Puts load on the servers of a stage, and prints its progress.

    Attributes:
        clients, changes, trainers: the measurements for each table.
    """

    def __init__(self, plan: Plan, stage: Stage, console: Console) -> None:
        self.clients: list[Cell] = []
        self.changes: list[Cell] = []
        self.trainers: list[Cell] = []
        self._plan = plan
        self._stage = stage
        self._console = console

    def run(self) -> None:
        plan = self._plan
        with self._stage.chosen() as chosen:
            with (
                self._stage.chosen(_MLFLOW_STORE) as mlflow_store,
                self._stage.defaults() as defaults,
            ):
                compared = [chosen, mlflow_store, defaults]
                for server in compared:
                    server.wait_until_idle()
                for number in range(plan.rounds):
                    for clients in plan.clients:
                        self.clients += self._load_each(compared, number, clients)
                for server in compared:
                    self.trainers += self._trainers(server)
            with self._changed() as changed:
                for number in range(plan.changed_rounds):
                    self.changes += self._load_each([chosen, *changed], number, plan.changed_at)

    def _load_each(self, servers: Sequence[Server], number: int, clients: int) -> Iterator[Cell]:
        # In alternating order, so that none always follows the same one.
        for server in servers[:: -1 if number % 2 else 1]:
            yield self._load(server, Load(clients, _POINTS, self._plan.seconds))

    def _trainers(self, server: Server) -> Iterator[Cell]:
        for trainers in self._plan.trainers:
            cell = self._load(server, Load(trainers, _TRAINER_POINTS, 2 * _PERIOD, _PERIOD))
            yield cell
            if not is_carried(cell):
                return

    def _load(self, server: Server, load: Load) -> Cell:
        cell = server.load(load)
        found = Summary([cell])
        self._console.print(
            f"{server.name}, {load.clients} {'trainers' if load.period else 'clients'}: "
            f"{found.rate:.0f} requests/s, p99 {found.quantile_ms(0.99):.0f} ms, {found.errors}"
        )
        return cell

    @contextlib.contextmanager
    def _changed(self) -> Iterator[list[Server]]:
        known = [each for each in _CHANGES if each.name != _C_DRIVER or find_spec("MySQLdb")]
        with contextlib.ExitStack() as running:
            with ThreadPoolExecutor(_STARTED_AT_ONCE) as pool:
                servers = list(pool.map(running.enter_context, map(self._stage.chosen, known)))
            for server in servers:
                server.wait_until_idle()
            yield servers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short loads, writes nothing")
    is_quick = parser.parse_args().quick
    plan = Plan((1, 8), 1, 0.5, 1, (8,)) if is_quick else Plan()

    # Exit by an exception on SIGTERM, so that the servers are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    console = wide_console()
    with Stage.running() as stage:
        measured = Measurement(plan, stage, console)
        measured.run()
        lost = stage.lost([*measured.clients, *measured.changes, *measured.trainers])
    tables = [
        clients_table(measured.clients),
        settings_table(measured.changes, plan.changed_at),
        trainers_table(measured.trainers),
    ]
    show(console, tables)
    if lost:
        raise SystemExit("\n".join(lost))
    if not is_quick:
        text = markdown(tables, measured.trainers)
        Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
