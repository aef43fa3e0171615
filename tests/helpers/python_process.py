"""Python programs in separate processes, most of them forked from one that has imported MLflow.

An interpreter takes 5 s to import MLflow, Optuna and LightGBM; see `fork_server`. A program that
must import them itself gets a new interpreter. So do all programs if the system has no pidfd or the
tests run with ``--fresh-interpreters``.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from fork_server import FOR_PROGRAMS, LARGEST

DEVNULL, PIPE = subprocess.DEVNULL, subprocess.PIPE
# Detects a process that hangs; each ends within a few seconds on an idle machine.
DEADLINE = 90.0

_Output = int | IO[str] | IO[bytes]
_FILE = Path(__file__).with_name("fork_server.py")
# Before any test has set a variable that modules could read when they are imported.
_ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MLFLOW_", "GOOGLE_", "GCE_"))
}
_forks = hasattr(os, "pidfd_open")


def forks() -> bool:
    """Whether programs are forked here."""
    return _forks


def use_fresh_interpreters() -> None:
    """Give each program a new interpreter from now on."""
    global _forks
    _forks = False


class ForkedProcess:
    """A program forked from a fork server, with the part of `subprocess.Popen` that tests use.

    Args:
        arguments, environment, stdin, stdout, stderr: as for `start`.
        folder: where it runs. Default: this process's folder.
        modules: modules that the process from which it is forked has imported.
        starts_session: whether it gets a new session, and so a new process group.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdin: int,
        stdout: _Output,
        stderr: _Output,
        folder: Path | None = None,
        *,
        modules: tuple[str, ...] = FOR_PROGRAMS,
        starts_session: bool = False,
    ) -> None:
        self.args = list(arguments)
        self.returncode: int | None = None
        program = {
            "arguments": self.args,
            "environment": dict(environment),
            "folder": str(folder or Path.cwd()),
            "starts_session": starts_session,
        }
        request = json.dumps(program).encode()
        assert len(request) < LARGEST, "too long for one message"
        self._answers, answer_to = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as handed:
            handed.enter_context(answer_to)
            theirs, self.stdin = _stream(stdin, "w", handed)
            numbers = [answer_to.fileno(), theirs]
            theirs, self.stdout = _stream(stdout, "r", handed)
            numbers.append(theirs)
            numbers.append(
                theirs if stderr == subprocess.STDOUT else _stream(stderr, "r", handed)[0]
            )
            socket.send_fds(_fork_server(modules), [request], numbers)
        self.pid = self._next_answer()

    def __enter__(self) -> ForkedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout):
            if stream is not None:
                stream.close()
        self.wait()

    def poll(self) -> int | None:
        """Its exit status, or the negative number of the signal that ended it; None before."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit status like ``poll``."""
        if self.returncode is None:
            self._answers.settimeout(timeout)
            try:
                self.returncode = self._next_answer()
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            self._answers.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _next_answer(self) -> int:
        answer = self._answers.recv(32)
        assert answer, "the fork server has ended"
        return int(answer)


Process = ForkedProcess | subprocess.Popen[str]


def start(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    stdin: int = DEVNULL,
    stdout: _Output = DEVNULL,
    stderr: _Output = 2,
    modules: tuple[str, ...] = FOR_PROGRAMS,
) -> Process:
    """Start a program.

    Args:
        arguments: as for ``python``: a file, ``-c`` and a text, or ``-m`` and a module.
        environment: environment of the program. Default: this process's environment.
        stdin, stdout, stderr: as for `subprocess.Popen`, for text.
        modules: modules that may already be imported; () starts a new interpreter.
    """
    environment = os.environ if environment is None else environment
    if _forks and modules:
        return ForkedProcess(arguments, environment, stdin, stdout, stderr, modules=modules)
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=True,
    )


def run(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    seconds: float = DEADLINE,
    modules: tuple[str, ...] = FOR_PROGRAMS,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; return its exit status and its output."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = start(
            *arguments, environment=environment, stdout=out, stderr=err, modules=modules
        )
        try:
            status = process.wait(seconds)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(process.args, status, out.read(), err.read())


def _stream(stream: _Output, mode: str, handed: ExitStack) -> tuple[int, Any]:
    """The program's end of a stream, and this process's end if it has one."""
    if stream == PIPE:
        reading, writing = os.pipe()
        theirs, ours = (reading, writing) if mode == "w" else (writing, reading)
        handed.callback(os.close, theirs)
        return theirs, open(ours, mode)
    if stream == DEVNULL:
        null = os.open(os.devnull, os.O_RDWR)
        handed.callback(os.close, null)
        return null, None
    return stream if isinstance(stream, int) else stream.fileno(), None


@functools.cache
def _fork_server(modules: tuple[str, ...]) -> socket.socket:
    """The socket of the fork server with these modules, which ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
    with theirs:
        subprocess.Popen(
            [sys.executable, str(_FILE), str(theirs.fileno()), *modules],
            pass_fds=[theirs.fileno()],
            cwd="/",
            env={
                **_ENVIRONMENT,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "PYTHONUNBUFFERED": "1",
                "PYTHONFAULTHANDLER": "1",
            },
            stdin=DEVNULL,
            start_new_session=True,  # Ctrl-C must not reach it
        )
    return ours
