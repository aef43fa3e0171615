"""The handle for a run: writes records to disk at once, to be sent in the background."""

from __future__ import annotations

import functools
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
from ..limits import (
    MAX_EXPERIMENT_TAG_LENGTH,
    MAX_INTEGER,
    MAX_METRICS,
    MAX_PARAM_LENGTH,
    MAX_PARAMS,
    MAX_TAG_LENGTH,
    MAX_TAGS,
)
from ..outbox import QueuedRun
from .lifecycle import LOCK, flush, sender_for
from .never_raising import never_raising
from .plain_values import (
    artifact_folder,
    as_text,
    as_texts,
    dataset_fields,
    dataset_tag,
    end_status,
    integer,
    milliseconds,
    model_name,
)
from .run_creation import Mode

if TYPE_CHECKING:
    from mlflow.data.dataset import Dataset

_V = TypeVar("_V", str, float)

# In place of the experiment, for a run whose key is MLflow's own id.
_EXISTING = "id:"

# Characters: a tenth of a request, so that records fit well into requests.
_MAX_RECORD_LENGTH = 100_000


def now_ms() -> int:
    """Return the current time as MLflow stores it, in milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


class RunWriter:
    """A handle for logging to one run, from any thread.

    Only ``flush`` and ``run_id`` wait for the server. The other methods never raise: values that
    cannot be logged are skipped with a warning. A copy in another process, made by pickle or fork,
    logs to the same run.

    Args:
        client: delivers the run.
        experiment: name of the experiment, which is created if it does not exist; or ``id:ID``.
            Write ``name:NAME`` if the name itself begins with ``id:`` or ``name:``.
        run_name: name shown in MLflow. Default: one that MLflow makes up.
        start_time: milliseconds since 1970, UTC. Default: now.
        tags: tags of the new run.
        key: run key, stored as a tag. Default: a random one.
        mode: who else may have created a run with this key. Default: a process that has ended; its
            run is continued.
        parent: parent run, or its id.
        not_before: time before which the run is not looked up or created, in seconds since 1970.
        former_key: key that an earlier version may have given to the run, if it began at
            ``start_time``.

    Examples:
        ```python
        run = callback.run(trial)  # of IAPMLflowCallback, inside the objective
        run.log_metrics({"loss": 0.3}, step=1)
        run.log_artifact("model.txt")
        ```
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
        former_key: str | None = None,
    ) -> None:
        if not experiment.startswith(("id:", "name:")):
            experiment = f"name:{experiment}"
        self.__setstate__((client, experiment, key or uuid.uuid4().hex))
        mode = mode if key else Mode.NEW
        sender = sender_for(client)
        self._run = sender.begin(self.key, experiment)
        self._run.is_urgent = mode in (Mode.SHARED, Mode.RESUMED)
        tag_texts = as_texts({**_context(), **(tags or {})}, MAX_TAG_LENGTH)
        # MLflow rejects a run whose name differs from the one in its tags.
        run_name = tag_texts.pop(MLFLOW_RUN_NAME, run_name)
        parts = list(_parts(tag_texts, MAX_TAGS))
        content = {
            "key": self.key,
            "experiment": experiment,
            "name": None if run_name is None else as_text(run_name)[:MAX_TAG_LENGTH],
            "time_ms": milliseconds(start_time, now_ms()),
            "tags": parts[0] if parts else {},
            "mode": mode.value,
            "parent": parent.key if isinstance(parent, RunWriter) else None,
            "parent_id": parent if isinstance(parent, str) else None,
            "logged_at": sender.clock.time(),
            "not_before": not_before,
            **({"former_key": former_key} if former_key else {}),
        }
        with never_raising("the run"):
            self._append("start", content)
        for part in parts[1:]:
            self._append("tags", part)

    @classmethod
    def existing(cls, client: MlflowClient, run_id: str) -> RunWriter:
        """Return a handle for an existing run, which others may also log to and finish.

        Args:
            client: delivers what is logged.
            run_id: MLflow's id of the run.
        """
        run = cls.__new__(cls)
        run.__setstate__((client, _EXISTING, run_id))
        return run

    def log_metrics(
        self, values: Mapping[str, float], *, step: int = 0, timestamp: int | None = None
    ) -> None:
        """Log one point of each metric.

        Args:
            values: values by metric. NaN is not logged but counted in a tag, because it breaks
                MLflow's run page (mlflow#16555).
            step: step of all points.
            timestamp: milliseconds since 1970, UTC. Default: now.
        """
        time_ms = timestamp or now_ms()
        # Called at each iteration of training, so the sender does everything that can wait.
        try:
            is_plain = type(step) is type(time_ms) is int and max(abs(step), time_ms) <= MAX_INTEGER
            if is_plain and len(values) <= MAX_METRICS:
                self._append("metrics", (step, time_ms, values))
                return
        except (TypeError, ValueError, OverflowError):
            pass  # a value is not a number; the others are logged below
        with never_raising(f"metrics at step {step!r}"):
            place = (integer(step), milliseconds(timestamp, now_ms()))
            for part in _parts(_numbers_of(values), MAX_METRICS):
                self._append("metrics", (*place, part))

    def log_curve(
        self, name: str, points: Sequence[tuple[int, float]], *, timestamp: int | None = None
    ) -> None:
        """Log many points of one metric.

        Args:
            name: name of the metric.
            points: step and value of each point.
            timestamp: time of all points, in milliseconds since 1970, UTC. Default: now.
        """
        time_ms = milliseconds(timestamp, now_ms())
        for first in range(0, len(points), MAX_METRICS):
            with never_raising(f"metric {name!r}"):
                some = points[first : first + MAX_METRICS]
                part = [(integer(step), value) for step, value in some]
                self._append("curve", (as_text(name), time_ms, part))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params. Values are cut to 6,000 characters; a param keeps its first value."""
        for part in _parts(as_texts(params, MAX_PARAM_LENGTH), MAX_PARAMS):
            self._append("params", part)

    def log_suggestions(self, params: Mapping[str, Any]) -> None:
        """Log the params that were suggested for a trial.

        If the run already has a param with another value, such as the one that was really used, the
        suggestion is logged as ``suggested.NAME``.
        """
        for part in _parts(as_texts(params, MAX_PARAM_LENGTH), MAX_PARAMS):
            self._append("suggestions", part)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags. Values are cut to 8,000 characters."""
        for part in _parts(as_texts(tags, MAX_TAG_LENGTH), MAX_TAGS):
            self._append("tags", part)

    def set_experiment_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run's experiment. Values are cut to 5,000 characters."""
        self._append("experiment_tags", as_texts(tags, MAX_EXPERIMENT_TAG_LENGTH))

    def log_artifact(
        self, local_path: str | Path, artifact_path: str | None = None, *, copy: bool = True
    ) -> None:
        """Upload a file, or a folder with its contents.

        Args:
            local_path: path of the file or folder.
            artifact_path: folder in the run's artifacts. Default: their root.
            copy: whether to copy it at once, so that it may be changed or deleted. Use False for
                large files that do not change.
        """
        with never_raising(f"artifact {str(local_path)!r}"):
            to = artifact_folder(artifact_path)
            path = Path(local_path).resolve(strict=True)
            outbox = self._queued().outbox
            kept = outbox.copy_artifact(path) if copy else str(path)
            self._append("artifact", {"path": kept, "is_copied": copy, "to": to})

    def log_text(self, text: str, artifact_file: str) -> None:
        """Upload text as a file.

        Args:
            text: content of the file.
            artifact_file: path of the file in the run's artifacts.
        """
        with never_raising(f"artifact {artifact_file!r}"), tempfile.TemporaryDirectory() as folder:
            to, _, name = (artifact_folder(artifact_file) or "").rpartition("/")
            if not name:
                raise ValueError("the file has no name")
            path = Path(folder) / name
            path.write_text(as_text(text), encoding="utf-8")
            self.log_artifact(path, to or None)

    def log_model(
        self, local_path: str | Path, name: str = "model", *, registered_name: str | None = None
    ) -> None:
        """Log a saved model, as ``mlflow.FLAVOR.log_model`` does.

        Args:
            local_path: folder written by ``mlflow.FLAVOR.save_model``; it is copied at once.
            name: name of the model.
            registered_name: registered model to which it is added as a new version. Default: none.
        """
        with never_raising("the model"):
            kept = self._queued().outbox.copy_artifact(Path(local_path).resolve(strict=True))
            content = {
                "path": kept,
                "is_copied": True,
                "key": uuid.uuid4().hex,
                "name": model_name(name),
                "registered_name": registered_name,
            }
            self._append("model", content)

    def log_input(self, dataset: Dataset, context: str | None = None) -> None:
        """Log a data set as an input of the run.

        Args:
            dataset: a data set of ``mlflow.data``.
            context: what it is used for, such as ``training``.
        """
        with never_raising("the data set"):
            tags = {} if context is None else {MLFLOW_DATASET_CONTEXT: dataset_tag(context)}
            self._append("input", {"dataset": dataset_fields(dataset), "tags": tags})

    def reopen(self) -> None:
        """Set the run to RUNNING again, if another process has ended it."""
        self._append("reopen", {})

    def finish(self, status: str = "FINISHED", *, end_time: int | None = None) -> None:
        """End the run, after everything that was logged so far is delivered.

        Args:
            status: FINISHED, FAILED or KILLED.
            end_time: milliseconds since 1970, UTC. Default: now.
        """
        time_ms = milliseconds(end_time, now_ms())
        self._append("finish", {"status": end_status(status), "time_ms": time_ms})
        if self._run is not None:
            self._run.is_ended = True

    def finish_at_exit(self, status: str | None) -> None:
        """Set the status that the run gets if it is still open when the process exits.

        Args:
            status: FINISHED, FAILED or KILLED. None: FAILED, with a tag that says why; this is also
                how a run ends if its process is killed.
        """
        self._queued().at_exit = None if status is None else end_status(status)

    def flush(self, timeout: float | None = 60.0) -> bool:
        """Wait until everything that this process logged to the server is delivered.

        Args:
            timeout: seconds to wait, None for no limit. The default is longer than the restart of
                an App Engine instance.

        Returns:
            Whether everything was delivered, or permanently rejected by MLflow. The rest is sent
            later.
        """
        return flush(self._client, timeout)

    def run_id(self, timeout: float | None = 60.0) -> str:
        """Wait for MLflow's id of the run, and return it.

        Args:
            timeout: seconds to wait, None for no limit.

        Raises:
            IAPError: MLflow has not created the run in time, or has rejected it.
        """
        run = self._queued()
        found = sender_for(self._client).run_id(run, timeout)
        if found is None:
            why = run.refused or run.trouble or "The server has not responded yet."
            raise IAPError(f"MLflow has not created the run. {why}")
        return found

    @property
    def known_id(self) -> str | None:
        """MLflow's id of the run; None if it is not known yet."""
        return None if self._run is None else self._run.run_id

    @property
    def known_experiment_id(self) -> str | None:
        """MLflow's id of the run's experiment; None if it is not known yet."""
        return None if self._run is None else self._run.experiment_id

    @property
    def client(self) -> MlflowClient:
        """The client that delivers the run."""
        return self._client

    def __getstate__(self) -> tuple[MlflowClient, str, str]:
        return self._client, self._experiment, self.key

    def __setstate__(self, state: tuple[MlflowClient, str, str]) -> None:
        self._client, self._experiment, self.key = state
        self._run = None

    def _append(self, kind: str, content: Any) -> None:
        run = self._run
        if run is None or run.is_ended or not run.outbox.intake.append(run.number, kind, content):
            run = self._queued(to_write=True)
            run.outbox.intake.append(run.number, kind, content)

    def _queued(self, *, to_write: bool = False) -> QueuedRun:
        """Return the run in this process's outbox; add it if another process began it."""
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


def active_experiment() -> str:
    """Return MLflow's active experiment, in the form that ``RunWriter`` takes.

    It is the one set by ``mlflow.set_experiment``, then the environment's, then *Default*.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if "MLFLOW_EXPERIMENT_ID" not in os.environ and name is not None:
        return f"name:{name}"
    return f"id:{os.environ.get('MLFLOW_EXPERIMENT_ID', '0')}"


def prepare(client: MlflowClient) -> None:
    """Prepare the delivery. Call this in the main thread, before training begins."""
    sender_for(client)  # sets up delivery on SIGTERM
    _context()


@functools.cache
def _context() -> dict[str, str]:
    """Return the tags that MLflow's fluent API sets: user, program, commit."""
    with never_raising("user and program"):
        return {name: text for name, text in resolve_tags().items() if text}
    return {}


def _parts(values: Mapping[str, _V], most: int) -> Iterator[dict[str, _V]]:
    """Split values into parts that each fit into one request."""
    part: dict[str, _V] = {}
    size = 0
    for name, value in values.items():
        size += len(name) + (len(value) if isinstance(value, str) else 0)
        if len(part) == most or (part and size > _MAX_RECORD_LENGTH):
            yield part
            part, size = {}, 0
        part[name] = value
    if part:
        yield part


def _numbers_of(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in values.items():
        with never_raising(f"metric {name!r}"):
            numbers[as_text(name)] = float(value)
    return numbers
