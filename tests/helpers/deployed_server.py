"""The server as its image runs it: entrypoint.sh's command with app.yaml's variables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner, Result

import python_process
from database_server import DatabaseServer
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.server.__main__ import main
from ports import free_port
from python_process import ForkedProcess
from restartable import Restartable
from tracking_server import SERVE, forked_server
from waiting import answers, wait_until

# A password that must be written differently in a URL, in SQL and in a shell.
PASSWORD = "p@ss/w0rd:x'"
HOST = "mlflow-dot-my-project.ew.r.appspot.com"
_COMMAND = (sys.executable, "-m", "mlflow_iap_callbacks.server")
FORKED = ("forked",)  # the same in a fork, which becomes the server as `serve` would
_FORKED = f"""
import os, sys
from mlflow_iap_callbacks.server.__main__ import main

def become(file, command, environment):
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = command[3:]
    exec({SERVE!r}, globals())

os.execve = become
main()
"""


def settings(server: DatabaseServer, database: str, artifacts: str) -> dict[str, str]:
    """The environment variables of a server on App Engine with a database on this machine."""
    return {
        "GOOGLE_CLOUD_PROJECT": "my-project",
        "GAE_SERVICE": "mlflow",
        "GAE_VERSION": "v1",
        "MLFLOW_SERVER_REGION_ID": "ew",
        "MLFLOW_IAP_AUDIENCE": "/projects/123456789012/apps/my-project",
        "MLFLOW_SERVER_DATABASE_ENGINE": server.engine,
        "MLFLOW_SERVER_DATABASE_SOCKET": server.socket,
        "MLFLOW_SERVER_DATABASE_NAME": database,
        "MLFLOW_SERVER_DATABASE_PASSWORD": PASSWORD,
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
        "HOST": "127.0.0.1",
    }


def set_up(server: DatabaseServer) -> None:
    """Create a database as appengine/README.md does on Cloud SQL."""
    if server.engine == "mysql":
        server.query("SET GLOBAL log_bin_trust_function_creators = 1")
    server.new_user("mlflow", PASSWORD)


def run(command: str, variables: Mapping[str, str]) -> Result:
    """Run a command in this process, because importing MLflow again takes seconds."""
    return CliRunner(env=variables).invoke(main, [command])


def begin(
    command: str,
    variables: Mapping[str, str],
    log: Path | None = None,
    program: Sequence[str] = _COMMAND,
) -> ForkedProcess | subprocess.Popen[bytes]:
    """Start a command in its own process group, without waiting for it."""
    if program is FORKED and not python_process.forks():
        program = _COMMAND
    with (log or Path(os.devnull)).open("ab") as output:
        if program is FORKED:
            return forked_server(["-c", _FORKED, command], _environment(variables), output)
        return subprocess.Popen(
            [*program, command],
            env=_environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


class DeployedServer(Restartable):
    """A server started with `serve`.

    Args:
        folder: where its log is stored; it remains at the end.
        variables: environment variables, as from `settings`.
        program: the program that gets the command `serve`.
        gated_port: port on which it listens behind its gate; None for a free port and no gate, for
            tests that send requests without IAP's assertion.
    """

    def __init__(
        self,
        folder: Path,
        variables: Mapping[str, str],
        program: Sequence[str] = _COMMAND,
        gated_port: int | None = None,
    ) -> None:
        self._program = program
        self._gated_port = gated_port
        self._folder = folder
        self.log = folder / "server.log"
        self._variables = variables

    def __enter__(self) -> DeployedServer:
        self._port = self._gated_port or free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill it and all processes that it started, like a crash of the machine."""
        if not self.has_ended:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        """Start it on its port, and return when it is healthy."""
        variables = {**self._variables, "PORT": str(self._port)}
        if self._gated_port is None:
            # MLflow's own application in place of the gate.
            path = application_folder(self._folder, "mlflow.server.fastapi_app:app")
            others = variables.get("PYTHONPATH") or os.environ.get("PYTHONPATH")
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(path), others)))
        self.process = begin("serve", variables, self.log, self._program)
        try:
            wait_until(lambda: answers(f"{self.url}/health") or self.has_ended, "the server", 90)
            assert not self.has_ended, self.log.read_text()
        except BaseException:
            self.kill()
            raise

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def processes(self) -> list[int]:
        """Ids of the server's process and of all processes that it started."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "-g", str(self.process.pid)], capture_output=True, text=True
        )
        return [int(line) for line in listed.stdout.split()]


@contextmanager
def behind_iap(
    folder: Path, variables: Mapping[str, str]
) -> Iterator[tuple[LocalCloud, DeployedServer]]:
    """The server with its gate, and IAP in front of it; arguments as for `DeployedServer`."""
    port = free_port()
    with LocalCloud(f"http://127.0.0.1:{port}") as cloud:
        name = {"MLFLOW_SERVER_HOSTS": cloud.url.removeprefix("http://")}
        given = {**variables, **cloud.server_environment(), **name}
        with DeployedServer(folder, given, gated_port=port) as server:
            yield cloud, server


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "PYTHONDONTWRITEBYTECODE"))
    }
    return {**kept, **variables}


def application_folder(folder: Path, application: str) -> Path:
    """A folder that makes `application` MLflow's app `iap`, if it is first in Python's path."""
    metadata = folder / "application" / "application-1.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: application\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[mlflow.app]\niap = {application}\n")
    return metadata.parent
