"""Servers to measure: as deployed, with one setting changed, and with MLflow's defaults."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from load_client import Load, Outcome

from database_server import MariaDB
from deployed_server import HOST, DeployedServer, application_folder, set_up, settings
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.server.database import database_url
from ports import free_port

_HERE = Path(__file__).parent
_CLIENT = _HERE / "load_client.py"
_SERVER = (sys.executable, "-m", "mlflow_iap_callbacks.server")
_CHANGED = (sys.executable, str(_HERE / "changed_server.py"))
_ASSERTION = "X-Goog-IAP-JWT-Assertion"
# MLflow's own command, instead of `serve`.
_MLFLOW = ("sh", "-c", 'exec "$0" -m mlflow server --port "$PORT"', sys.executable)
# What uvicorn uses after `pip install mlflow pymysql`; this environment has more.
_WITHOUT_UVLOOP = "--loop asyncio --http h11"
_JOB_FOLDER = "_MLFLOW_HUEY_STORAGE_PATH"
_IDLE = 0.05  # of a processor
_DEADLINE = 90.0


@dataclass(frozen=True)
class Change:
    """A change of one setting.

    Attributes:
        name: shown in the table.
        variables: environment variables of the server.
        arguments: arguments of `changed_server.py`.
        is_gated: whether the server requires IAP's assertion.
        application: what it serves in place of this package's application.
    """

    name: str
    variables: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    is_gated: bool = True
    application: str = ""


@dataclass(frozen=True)
class Cell:
    """The result of putting load on a server.

    Attributes:
        server: name of the server.
        database: name of its database.
        memory_mib: memory of all its processes afterwards; what they share is counted once.
        cpu: processor time that the server took, in seconds.
    """

    server: str
    database: str
    load: Load
    outcome: Outcome
    memory_mib: float
    cpu: float


class Server:
    """A running server.

    Args:
        process: the parent of all its processes.
        headers: returns headers for requests; called for each load, because an assertion is valid
            for ten minutes.
        database: name of its database.
    """

    def __init__(
        self,
        name: str,
        port: int,
        process: int,
        headers: Callable[[], Mapping[str, str]],
        database: str,
    ) -> None:
        self.name = name
        self.database = database
        self._port = port
        self._process = psutil.Process(process)
        self._headers = headers

    def load(self, load: Load) -> Cell:
        """Put load on the server from a separate process."""
        before = self._cpu()
        given = {"load": asdict(load), "port": self._port, "headers": self._headers()}
        done = subprocess.run(
            [sys.executable, str(_CLIENT)],
            input=json.dumps(given),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        outcome = Outcome(**json.loads(done.stdout))
        return Cell(
            self.name, self.database, load, outcome, self._memory_mib(), self._cpu() - before
        )

    def wait_until_idle(self) -> None:
        """Wait until the server has started all its child processes."""
        ends = time.monotonic() + _DEADLINE
        while True:
            before = self._cpu()
            time.sleep(1.0)
            if self._cpu() - before < _IDLE:
                return
            if time.monotonic() > ends:
                raise RuntimeError(f"{self.name}: busy without any request after {_DEADLINE:.0f} s")

    def job_folders(self) -> set[str]:
        """Return the folder of its job queue, which is in memory and stays after its end."""
        found = {process.environ().get(_JOB_FOLDER) for process in self._family()}
        return {path for path in found if path is not None}

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _cpu(self) -> float:
        times = [process.cpu_times() for process in self._family()]
        return float(sum(each.user + each.system for each in times))

    def _memory_mib(self) -> float:
        # Not PSS, which counts less of the libraries the more servers run at the same time.
        used = [_memory(process.pid) for process in self._family()]
        return (sum(own for own, _ in used) + max(files for _, files in used)) / 1024


def _memory(process: int) -> tuple[int, int]:
    """Return a process's own memory and its memory of files, in KiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    kinds = dict(line.split(":", 1) for line in lines)
    own, files = (int(kinds[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return own, files


class Stage:
    """The environment of servers: a database configured like Cloud SQL, and the local cloud."""

    def __init__(self, folder: Path, database: MariaDB, cloud: LocalCloud) -> None:
        self._folder = folder
        self._mariadb = database
        self._cloud = cloud
        self._chosen = database.new_database_for("mlflow")
        self._defaults = database.new_database_for("mlflow")

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[Stage]:
        """Open a stage, and stop and remove everything afterwards."""
        with (
            tempfile.TemporaryDirectory() as name,
            MariaDB(Path(name), is_logged=True, is_durable=True) as database,
            LocalCloud() as cloud,
        ):
            set_up(database)
            # Commits survive a crash of the machine.
            database.query("SET GLOBAL sync_binlog = 1")
            # For many servers at the same time, each with up to 121 connections per worker.
            database.query("SET GLOBAL max_connections = 2000")
            yield cls(Path(name), database, cloud)

    @contextlib.contextmanager
    def chosen(self, change: Change | None = None) -> Iterator[Server]:
        """Start `serve` as in the image, or with one setting changed."""
        variables = {
            **settings(self._mariadb, self._chosen, "artifacts"),
            **self._cloud.server_environment(),
            "MLFLOW_SERVER_MIGRATE": "true",
        }
        if change is None:
            change = Change("chosen")
        program = (*_CHANGED, *change.arguments) if change.arguments else _SERVER
        with self._running(change, variables, program, self._chosen) as server:
            yield server

    @contextlib.contextmanager
    def defaults(self) -> Iterator[Server]:
        """Start `mlflow server` with defaults, except for its store, its port and its host name."""
        url = database_url(settings(self._mariadb, self._defaults, "artifacts"))
        variables = {
            "MLFLOW_BACKEND_STORE_URI": url.render_as_string(hide_password=False),
            "MLFLOW_SERVER_ALLOWED_HOSTS": HOST,
            "MLFLOW_UVICORN_OPTS": _WITHOUT_UVLOOP,
            # No telemetry from benchmarks.
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        change = Change("MLflow's defaults")
        with self._running(change, variables, _MLFLOW, self._defaults) as server:
            yield server

    def lost(self, cells: Sequence[Cell]) -> list[str]:
        """Return a line about each database whose points differ from those that were sent."""
        lines = []
        for database in (self._chosen, self._defaults):
            outcomes = [cell.outcome for cell in cells if cell.database == database]
            least = sum(outcome.acknowledged for outcome in outcomes)
            most = least + sum(outcome.doubtful for outcome in outcomes)
            ((found,),) = self._mariadb.query(f"SELECT COUNT(*) FROM {database}.metrics")
            if not least <= found <= most:
                lines.append(f"{database} has {found:,} points, {least:,} were acknowledged.")
        return lines

    @contextlib.contextmanager
    def _running(
        self, change: Change, variables: Mapping[str, str], program: Sequence[str], database: str
    ) -> Iterator[Server]:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        artifacts = {"MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts")}
        if change.application:
            paths = [application_folder(folder, change.application), _HERE]
            others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            artifacts["PYTHONPATH"] = os.pathsep.join([*map(str, paths), *others])
        with DeployedServer(
            folder,
            {**variables, **artifacts, **change.variables},
            program,
            gated_port=free_port() if change.is_gated else None,
        ) as deployed:
            port = int(deployed.url.rpartition(":")[2])
            server = Server(change.name, port, deployed.process.pid, self._headers, database)
            try:
                yield server
            finally:
                left = server.job_folders()
                deployed.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    deployed.process.wait(_DEADLINE)
                for path in left:
                    shutil.rmtree(path, ignore_errors=True)

    def _headers(self) -> dict[str, str]:
        return {"Host": HOST, _ASSERTION: self._cloud.assertion()}
