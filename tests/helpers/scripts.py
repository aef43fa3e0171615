"""Programs that run in separate processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
import textwrap
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import python_process
from python_process import DEADLINE
from waiting import wait_until

__all__ = ["COMMAND", "DEADLINE", "Script", "Start", "command", "starting"]

COMMAND = str(Path(sysconfig.get_path("scripts")) / "mlflow-iap")


class Script:
    """A Python program that runs in a separate process.

    Args:
        file: file with the program.
        arguments: arguments of the program.
        folder: where its output is stored.
        variables: environment variables, in addition to the test's.
    """

    def __init__(self, file: Path, *arguments: str, folder: Path, **variables: str) -> None:
        printed = folder / f"{file.stem}_{uuid.uuid4().hex[:8]}"
        self._out, self._err = printed.with_suffix(".out"), printed.with_suffix(".err")
        own = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = python_process.start(
                *(str(file), *arguments),
                environment={**os.environ, **own, **variables},
                stdout=out,
                stderr=err,
            )
        self.pid = self._process.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for(self, text: str, seconds: float = DEADLINE) -> None:
        """Wait until it has printed ``text``."""
        wait_until(
            lambda: text in self.out + self.err or self._process.poll() is not None, text, seconds
        )
        assert text in self.out + self.err, self.err

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, seconds: float = DEADLINE) -> int:
        """Wait for its end; return its exit status.

        Raises:
            AssertionError: it has not ended in time; the message shows where its threads are.
        """
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        self._process.send_signal(signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        raise AssertionError(f"It has not ended after {seconds:.0f} s.\n{self.err}")

    def kill(self) -> None:
        """Kill it like ``kill -9``, if it has not ended."""
        self._process.kill()
        self._process.wait()


Start = Callable[..., Script]


@contextmanager
def starting(folder: Path, imports: str) -> Iterator[Start]:
    """Yield a function that starts programs, which are killed at the end of the block.

    Args:
        folder: where the programs and their output are stored.
        imports: the first lines of each program.
    """
    with ExitStack() as stack:

        def start(text: str, *arguments: str, **variables: str) -> Script:
            file = folder / f"script_{uuid.uuid4().hex[:8]}.py"
            file.write_text(imports + textwrap.dedent(text))
            script = Script(file, *arguments, folder=folder, **variables)
            stack.callback(script.kill)
            return script

        yield start


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``mlflow-iap``."""
    return python_process.run(
        *(COMMAND, *arguments), environment={**os.environ, "COLUMNS": "200", **variables}
    )
