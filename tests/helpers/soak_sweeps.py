"""Sweeps in separate processes, and the comparison of their notes with what MLflow has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

from mlflow import MlflowClient

from ground_truth import Notes, compare, read
from mlflow_iap_callbacks.local import LocalCloud

SEED = int(os.environ.get("SOAK_SEED", "20"))
COMMAND = str(Path(sysconfig.get_path("scripts")) / "mlflow-iap")
_WORKER = str(Path(__file__).with_name("sweep_worker.py"))
# The warnings that are expected during these faults.
_EXPECTED = re.compile(
    r"(WARNING mlflow_iap_callbacks\.sender )?"
    r"(\S+ (cannot be written to|accepts records again)|A run's records cannot be sent yet)"
)


class Worker:
    """A sweep in a separate process."""

    def __init__(self, folder: Path, mode: str, number: int = 0, **options: float) -> None:
        self.said = folder / f"said-{number}"
        self._notes = folder / f"notes-{number}"
        command = [sys.executable, _WORKER, mode, "--name=sweep"]
        command += [f"--notes={self._notes}", f"--seed={SEED * 1000 + number}"]
        command += [f"--{name}={value}" for name, value in options.items()]
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    def hear(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, f"seed {SEED}: the sweep ended: {self.said.read_text()[-3000:]}"
        return line

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        assert self.process.poll() is None, self.said.read_text()
        self.process.kill()
        self.process.communicate()
        Notes(self._notes).killed()

    def end(self) -> None:
        self.process.communicate(timeout=60.0)
        assert self.process.returncode == 0, self.said.read_text()


class Soak:
    """Sweeps that log through one IAP, and what they noted.

    Args:
        folder: where their output and notes are stored.
        cloud: the cloud whose variables are set.
        store: URI of the database behind it.
    """

    def __init__(self, folder: Path, cloud: LocalCloud, store: str) -> None:
        self.folder = folder
        self.cloud = cloud
        self._store = store
        self._workers: list[Worker] = []
        self._began = time.monotonic()

    def worker(self, mode: str, number: int = 0, **options: float) -> Worker:
        """Return a sweep that is ready to begin."""
        worker = Worker(self.folder, mode, number, **options)
        self._workers.append(worker)
        assert worker.hear() == "ready"
        return worker

    def __enter__(self) -> Soak:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all sweeps, no matter how the test ended."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.communicate()

    def warnings(self) -> list[str]:
        """All warnings of the sweeps, without the links to their studies."""
        said = "".join(path.read_text() for path in sorted(self.folder.glob("said-*")))
        # A warning may quote a front end's error page over several lines.
        lines = re.sub(r"\n(?=[<'])", " ", said).splitlines()
        return [line for line in lines if not line.startswith("Study sweep: http")]

    def check(self, figures: dict[str, object], *, most_unknown: int = 0) -> None:
        """Compare all notes with MLflow, and print the numbers."""
        noted = read(sorted(self.folder.glob("notes-*")))
        result = compare(MlflowClient(self._store), noted, most_unknown=most_unknown)
        status = subprocess.run([COMMAND, "status"], capture_output=True, text=True, check=True)
        if not status.stdout.startswith("No records are waiting in"):
            result.wrong.append(status.stdout)
        if left := [path.name for path in self.folder.glob("outbox/*")]:
            result.wrong.append(f"{left} are left in the outbox")
        result.wrong += [f"a sweep said {w!r}" for w in self.warnings() if not _EXPECTED.match(w)]
        answers = Counter(seen.status for seen in self.cloud.requests)
        figures |= {
            **result.figures,
            "seconds": round(time.monotonic() - self._began),
            "requests": len(self.cloud.requests),
            "answers": ", ".join(f"{n} x {status or 'lost'}" for status, n in answers.items()),
            "tokens": len(self.cloud.tokens),
            "warnings": len(self.warnings()),
            "seed": SEED,
        }
        print("", *(f"{name}: {value}" for name, value in figures.items()), sep="\n  ")
        wrong = "\n".join(result.wrong[:20])
        assert not result.wrong, f"seed {SEED}, {len(result.wrong)} wrong:\n{wrong}"
