"""A real MLflow tracking server in a child process, for tests."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

_HOST = "127.0.0.1"
_START_TIMEOUT = 120.0  # seconds; a start takes about 5, and much longer on a busy machine
_STOP_TIMEOUT = 10.0  # seconds; then it is killed
_ATTEMPTS = 5  # to start it on a free port before another program takes the port


class MlflowServer:
    """`mlflow server` on 127.0.0.1, with SQLite and the artifacts in a folder.

    Examples:
        ```python
        with MlflowServer(tmp_path) as server:
            MlflowClient(server.url).create_experiment("test")
        ```

    Args:
        folder: where the database, the artifacts and the log are stored; they remain when it ends.
        port: port to listen on; 0 for a free one.
        app_name: entry point of the app that it serves. Default: MLflow's own app.
        environment: environment variables for it, in addition to those of this process that do not
            change what a server does.
        workers: number of server processes. Default: one, which starts the fastest.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        port: int = 0,
        app_name: str | None = None,
        environment: Mapping[str, str] | None = None,
        workers: int = 1,
    ) -> None:
        self._folder = Path(folder).resolve()  # it is the server's working directory
        self.log = self._folder / "mlflow-server.log"
        self._options = ["--workers", str(workers)]
        self._options += ["--app-name", app_name] if app_name else []
        self._environment = dict(environment or {})
        self._given_port = port
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Origin of the server, once it has been started."""
        return f"http://{_HOST}:{self._port}"

    def start(self) -> None:
        """Start the server, and return when it responds.

        Raises:
            RuntimeError: if it exits, or does not respond within 120 seconds. The message shows the
                end of its log.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS):
            self._port = self._given_port or _free_port()
            if self._launch():
                return
            if self._given_port or "address already in use" not in self._tail():
                break
        raise RuntimeError(
            f"mlflow server does not respond at {self.url}. Its log ends:\n{self._tail()}"
        )

    def stop(self) -> None:
        """Terminate the server and its child processes; kill them after 10 seconds."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server and its child processes, like a crash of the machine."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Suspend the server, like a machine without a free processor: it does not respond."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume the server after `pause`."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop the server if it is running, and start it again with the same port and data.

        Raises:
            RuntimeError: see `start`.
        """
        self.stop()
        if not self._launch():
            raise RuntimeError(f"mlflow server did not restart. Its log ends:\n{self._tail()}")

    def _launch(self) -> bool:
        """Start the process. Return whether it responds; if it does not, kill it."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", _HOST]
        command += ["--port", str(self._port), *self._options]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with self.log.open("ab") as log:
            log_start = log.tell()
            environment = {**_clean_environment(), **self._environment}
            self._process = self._begin(command, environment, log)
        try:
            deadline = time.monotonic() + _START_TIMEOUT
            while time.monotonic() < deadline and self._process.poll() is None:
                # /health alone may come from another server that took the port meanwhile.
                if self._says_it_listens(log_start) and self._is_healthy():
                    return True
                time.sleep(0.05)
        except BaseException:
            self.kill()
            raise
        self.kill()
        return False

    def _begin(
        self, command: list[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own command
            command,
            cwd=self._folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # A process group of its own: the server starts further processes.
            start_new_session=True,
        )

    def _says_it_listens(self, log_start: int) -> bool:
        with self.log.open("rb") as log:
            log.seek(log_start)
            return f"running on {self.url}".encode() in log.read()

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_TIMEOUT)
        # Even if the process has ended, its children may still be running.
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _signal(self, how: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, how)

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _clean_environment() -> dict[str, str]:
    """Return this process's variables, without those that change what a server does."""
    kept = {
        name: value
        for name, value in os.environ.items()
        # Without byte code, each start would compile all of MLflow again.
        if not name.startswith("MLFLOW_")
        and not name.lower().endswith("_proxy")
        and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {
        **kept,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Eight processes that no test needs.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # It handles 40 requests at once, each with up to four database connections. With MLflow's
        # own 15, requests that have one connection each wait 30 s for a second one.
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "40",
        "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "81",
    }
