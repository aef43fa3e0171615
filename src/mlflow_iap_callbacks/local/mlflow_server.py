"""A real MLflow tracking server as a child process, for tests."""

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
from types import TracebackType
from typing import IO

_HOST = "127.0.0.1"
_START_DEADLINE = 60.0
_STOP_DEADLINE = 10.0
_ATTEMPTS = 5


class MlflowServer:
    """`mlflow server` on loopback, with SQLite and its artifacts in one folder.

        with MlflowServer(tmp_path) as server:
            MlflowClient(server.url)

    Args:
        folder: for the database, the artifacts and the log; kept at the end.
        port: 0 for a free one.
        app_name: of the entry point that it serves; None for MLflow's own app.
        environment: variables of it, beside those of this process that do not change what it does.
        workers: its processes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        app_name: str | None = None,
        environment: Mapping[str, str] | None = None,
        workers: int = 1,
    ) -> None:
        self._folder = folder.resolve()  # the server runs in it
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its origin, known once it has been started."""
        return f"http://{_HOST}:{self._port}"

    def start(self) -> None:
        """Start it and return when it answers.

        Raises:
            RuntimeError: if it has not answered within 60 seconds or has ended; with the tail of
                its log.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS):
            self._port = self._given_port or _free_port()
            if self._launch():
                return
            if self._given_port or "address already in use" not in self._tail():
                break
        raise RuntimeError(
            f"mlflow server does not answer at {self.url}. Its log ends:\n{self._tail()}"
        )

    def stop(self) -> None:
        """End it and the processes that it started: asked first, killed after 10 seconds."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it and the processes that it started, as a crash of the machine would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang, as a machine without a free processor does: it takes and answers nothing."""
        if self._process is not None:
            _signal_group(self._process, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on with what it had taken."""
        if self._process is not None:
            _signal_group(self._process, signal.SIGCONT)

    def restart(self) -> None:
        """Start it again on the same port, with what it had stored.

        Raises:
            RuntimeError: as `start`.
        """
        self.stop()
        if not self._launch():
            raise RuntimeError(f"mlflow server did not restart. Its log ends:\n{self._tail()}")

    def _launch(self) -> bool:
        """Start the process; return whether it answers, having ended it where it does not."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", _HOST]
        command += ["--port", str(self._port), *self._options]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with self.log.open("ab") as log:
            log_start = log.tell()
            environment = {**_clean_environment(), **self._environment}
            self._process = self._begin(command, environment, log)
        try:
            deadline = time.monotonic() + _START_DEADLINE
            while time.monotonic() < deadline and self._process.poll() is None:
                # Health alone may be another server's that took the port in between.
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
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_DEADLINE)
        # Also where the leader has ended: its children may have outlived it.
        _signal_group(process, signal.SIGKILL)
        process.wait()

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _signal_group(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, how)


def _clean_environment() -> dict[str, str]:
    """Return this process's variables without those that would change what the server does."""
    kept = {
        name: value
        for name, value in os.environ.items()
        # Without byte code each start would compile all of MLflow again.
        if not name.startswith("MLFLOW_")
        and not name.lower().endswith("_proxy")
        and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {
        **kept,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Eight processes that no test needs.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # It answers 40 requests at once, each with up to four connections to its database, one
        # session in another. Of its own 15, those with one each wait 30 s for a second.
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "40",
        "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "81",
    }
