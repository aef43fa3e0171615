"""A run that is written to while it happens; what is written leaves in the background."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_NAME

from ..errors import IAPError
from ..limits import MAX_METRICS, MAX_PARAM_LENGTH, MAX_PARAMS, MAX_TAG_LENGTH, MAX_TAGS
from ..outbox import QueuedRun
from .lifecycle import LOCK, sender_for
from .run_creation import Mode

if TYPE_CHECKING:
    from mlflow.data.dataset import Dataset

_logger = logging.getLogger(__name__)
_V = TypeVar("_V", str, float)

# Stands for the experiment of a run whose key is MLflow's own id.
_EXISTING = "id:"

_DATASET = ("name", "digest", "source_type", "source", "schema", "profile")
# So that a few records always fill a request's megabyte without overflowing it.
_LONGEST_RECORD = 100_000


def now_ms() -> int:
    """Milliseconds since 1970, UTC, as MLflow counts time."""
    return time.time_ns() // 1_000_000


class RunWriter:
    """One run, written to from any thread and finished once. Nothing here waits for the server but
    ``flush`` and ``run_id``, and nothing raises into a training: what cannot be logged is told.

    A copy that travels to another process, by pickle or fork, writes to the same run.

    Args:
        client: to deliver with.
        experiment: name of the run's experiment, which is made where it does not exist; or its
            id, as ``id:ID``, with ``name:NAME`` for a name that looks like that.
        run_name: shown in MLflow; None for one of MLflow's.
        start_time: milliseconds since 1970, UTC. Default: now.
        tags: given to the run when it is made.
        key: of the run, by which MLflow knows it too. Default: a new one.
        mode: who else may have made a run by that key. Default: a process that is over, whose
            run goes on.
        parent: run that it belongs to, or MLflow's id of it.
        not_before: seconds since 1970 before which it is not looked for in MLflow.
    """

    _run: QueuedRun | None

    def __init__(
        self,
        client: MlflowClient,
        experiment: str,
        *,
        run_name: str | None = None,
        start_time: int | None = None,
        tags: Mapping[str, Any] | None = None,
        key: str | None = None,
        mode: Mode = Mode.RESUMED,
        parent: RunWriter | str | None = None,
        not_before: float = 0.0,
    ) -> None:
        if not experiment.startswith(("id:", "name:")):
            experiment = f"name:{experiment}"
        self.__setstate__((client, experiment, key or uuid.uuid4().hex))
        mode = mode if key else Mode.NEW
        sender = sender_for(client)
        self._run = sender.begin(self.key, experiment)
        self._run.is_urgent = mode in (Mode.SHARED, Mode.RESUMED)
        texts = _texts({**_context(), **(tags or {})}, MAX_TAG_LENGTH)
        # MLflow takes no run whose name is not the one that its tags say.
        run_name = texts.pop(MLFLOW_RUN_NAME, run_name)
        parts = list(_parts(texts, MAX_TAGS))
        content = {
            "key": self.key,
            "experiment": experiment,
            "name": run_name,
            "time_ms": start_time or now_ms(),
            "tags": parts[0] if parts else {},
            "mode": mode.value,
            "parent": parent.key if isinstance(parent, RunWriter) else None,
            "parent_id": parent if isinstance(parent, str) else None,
            "logged_at": sender.clock.time(),
            "not_before": not_before,
        }
        with _never_raising("run"):
            self._append("start", content)
        for part in parts[1:]:
            self._append("tags", part)

    @classmethod
    def existing(cls, client: MlflowClient, run_id: str) -> RunWriter:
        """A run that is there already, and that others may write to and finish.

        Args:
            client: to deliver with.
            run_id: MLflow's.
        """
        run = cls.__new__(cls)
        run.__setstate__((client, _EXISTING, run_id))
        return run

    def log_metrics(
        self, values: Mapping[str, float], *, step: int = 0, timestamp: int | None = None
    ) -> None:
        """Log one point per name.

        Args:
            values: NaN is counted in a tag instead, for MLflow's run page breaks on it.
            step: of all of them.
            timestamp: milliseconds since 1970, UTC. Default: now.
        """
        content = (step, timestamp or now_ms(), values)
        # What a training does at each iteration: what can wait is left to the sender.
        try:
            if len(values) <= MAX_METRICS:
                self._append("metrics", content)
                return
        except (TypeError, ValueError, OverflowError):
            pass  # one of them is no number, or they are no dict; the others are logged
        for part in _parts(self._numbers_of(values), MAX_METRICS):
            with _never_raising("metrics"):
                self._append("metrics", (int(step), content[1], part))

    def log_curve(
        self, name: str, points: Sequence[tuple[int, float]], *, timestamp: int | None = None
    ) -> None:
        """Log a metric's points at once.

        Args:
            name: of the metric.
            points: step and value of each.
            timestamp: of all of them, as ``log_metrics``.
        """
        for first in range(0, len(points), MAX_METRICS):
            part = [(int(step), value) for step, value in points[first : first + MAX_METRICS]]
            self._append("curve", (name, timestamp or now_ms(), part))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params; values over 6,000 characters are cut, and the first value stays."""
        for part in _parts(_texts(params, MAX_PARAM_LENGTH), MAX_PARAMS):
            self._append("params", part)

    def log_suggestions(self, params: Mapping[str, Any]) -> None:
        """As ``log_params``; one whose name has another value already, for a training may have
        logged the one that it really used, goes by ``suggested.NAME``."""
        for part in _parts(_texts(params, MAX_PARAM_LENGTH), MAX_PARAMS):
            self._append("suggestions", part)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; values over 8,000 characters are cut."""
        for part in _parts(_texts(tags, MAX_TAG_LENGTH), MAX_TAGS):
            self._append("tags", part)

    def log_artifact(
        self, local_path: str | Path, artifact_path: str | None = None, *, copy: bool = True
    ) -> None:
        """Upload a file, or a folder with all that is in it.

        Args:
            local_path: of it.
            artifact_path: folder in the run's artifacts. Default: their root.
            copy: copy it first, so that it may change or go. Without it, for what is large and
                stays, what is there at the time of the upload is uploaded.
        """
        with _never_raising(f"artifact {str(local_path)!r}"):
            path = Path(local_path).resolve(strict=True)
            outbox = self._here().outbox
            kept = outbox.copy_artifact(path) if copy else str(path)
            self._append("artifact", {"path": kept, "is_copied": copy, "to": artifact_path})

    def log_text(self, text: str, artifact_file: str) -> None:
        """Upload a text.

        Args:
            text: of the file.
            artifact_file: its name.
        """
        with _never_raising(f"artifact {artifact_file!r}"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / artifact_file
            path.write_text(text, encoding="utf-8")
            self.log_artifact(path)

    def log_model(
        self, local_path: str | Path, name: str = "model", *, registered_name: str | None = None
    ) -> None:
        """Log a saved model as one of the run's.

        Args:
            local_path: folder that ``mlflow.FLAVOR.save_model`` wrote; it is copied at once.
            name: of the model, as the run shows it.
            registered_name: in the model registry, which gets a version of it. Default: none.
        """
        with _never_raising("model"):
            kept = self._here().outbox.copy_artifact(Path(local_path).resolve(strict=True))
            content = {"path": kept, "is_copied": True, "key": uuid.uuid4().hex, "name": name}
            self._append("model", {**content, "registered_name": registered_name})

    def log_input(self, dataset: Dataset, context: str | None = None) -> None:
        """Log a data set as an input of the run.

        Args:
            dataset: as ``mlflow.data`` makes them.
            context: what it is for, as ``training``.
        """
        with _never_raising("data set"):
            given = dataset.to_dict()
            tags = {} if context is None else {MLFLOW_DATASET_CONTEXT: context}
            fields = {name: given.get(name) for name in _DATASET}
            self._append("input", {"dataset": fields, "tags": tags})

    def reopen(self) -> None:
        """Let the run go on, if another ended it meanwhile."""
        self._append("reopen", {})

    def finish(self, status: str = "FINISHED", *, end_time: int | None = None) -> None:
        """End the run, behind all that was logged so far.

        Args:
            status: FINISHED, FAILED or KILLED.
            end_time: milliseconds since 1970, UTC. Default: now.
        """
        self._append("finish", {"status": status, "time_ms": end_time or now_ms()})
        if self._run is not None:
            self._run.is_ended = True

    def finish_at_exit(self, status: str | None) -> None:
        """What to end the run with if it is open when the process ends in order.

        Args:
            status: FINISHED, FAILED or KILLED; None for FAILED with a tag that says why, which is
                also what a run gets whose process is killed.
        """
        self._here().at_exit = status

    def flush(self, timeout: float | None = 60.0) -> bool:
        """Wait until all that was logged is delivered, that of other runs included.

        Args:
            timeout: seconds. Default: a minute, which outlasts the restart of an App Engine
                instance; None for as long as it takes.

        Returns:
            Whether all was delivered, or refused by MLflow for good. What was not stays queued.
        """
        return sender_for(self._client).flush(timeout)

    def run_id(self, timeout: float | None = 60.0) -> str:
        """MLflow's id of the run, waited for.

        Args:
            timeout: seconds. Default: as ``flush``; None for as long as it takes.

        Raises:
            IAPError: MLflow does not know the run by then, or refuses it.
        """
        run = self._here()
        found = sender_for(self._client).run_id(run, timeout)
        if found is None:
            why = run.refused or run.trouble or "The server has not answered yet."
            raise IAPError(f"MLflow has not made the run. {why}")
        return found

    @property
    def known_id(self) -> str | None:
        """MLflow's id of the run; None if it is not known here, or not yet."""
        return None if self._run is None else self._run.run_id

    @property
    def client(self) -> MlflowClient:
        """What it is delivered with."""
        return self._client

    def __getstate__(self) -> tuple[MlflowClient, str, str]:
        return self._client, self._experiment, self.key

    def __setstate__(self, state: tuple[MlflowClient, str, str]) -> None:
        self._client, self._experiment, self.key = state
        self._run = None

    def _append(self, kind: str, content: Any) -> None:
        run = self._run
        if run is None or run.is_ended or not run.outbox.intake.append(run.number, kind, content):
            run = self._here(to_write=True)
            run.outbox.intake.append(run.number, kind, content)

    def _here(self, *, to_write: bool = False) -> QueuedRun:
        """The run in this process's outbox, where it goes on if it was begun in another's."""
        with LOCK:
            run = self._run
            is_over = to_write and run is not None and run.is_ended
            if run is None or is_over or not run.outbox.intake.is_open:
                run_id = None if run is None else run.run_id
                if self._experiment == _EXISTING:
                    run_id = self.key
                run = sender_for(self._client).join(self.key, self._experiment, run_id)
                self._run = run
            return run

    def _numbers_of(self, values: Mapping[str, Any]) -> dict[str, float]:
        numbers = {}
        for name, value in values.items():
            with _never_raising(f"metric {name!r}"):
                numbers[str(name)] = float(value)
        return numbers


def active_experiment() -> str:
    """MLflow's active one, as ``RunWriter`` takes it: ``mlflow.set_experiment``, else what the
    environment says, else *Default*."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if "MLFLOW_EXPERIMENT_ID" not in os.environ and name is not None:
        return f"name:{name}"
    return f"id:{os.environ.get('MLFLOW_EXPERIMENT_ID', '0')}"


def prepare(client: MlflowClient) -> None:
    """Do what takes time once, and what is for the main thread, before a training begins."""
    sender_for(client)  # from here on SIGTERM is taken care of
    _context()


@functools.cache
def _context() -> dict[str, str]:
    """What MLflow's fluent API tells of a run: user, program, commit."""
    with _never_raising("user and program"):
        return {name: text for name, text in resolve_tags().items() if text}
    return {}


class _never_raising:
    """No training ends because of its log."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if isinstance(error, Exception):
            _logger.warning("The %s was not logged: %s", self._what, error)
            return True
        return False


def _parts(values: Mapping[str, _V], most: int) -> Iterator[dict[str, _V]]:
    """Cut into what one request can carry."""
    part: dict[str, _V] = {}
    size = 0
    for name, value in values.items():
        size += len(name) + (len(value) if isinstance(value, str) else 0)
        if len(part) == most or (part and size > _LONGEST_RECORD):
            yield part
            part, size = {}, 0
        part[name] = value
    if part:
        yield part


def _texts(values: Mapping[str, Any], longest: int) -> dict[str, str]:
    texts = {}
    for name, value in values.items():
        with _never_raising(f"value of {name!r}"):
            texts[_text(name)] = _text(value)[:longest]
    return texts


def _text(value: object) -> str:
    return str(value).encode(errors="replace").decode()
