"""The run handle: checks what is logged and appends it to the outbox as records."""

from __future__ import annotations

import functools
import html
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from ..errors import IAPError
from ..iap.arguments import check, checked
from ..iap.client import IAPMlflowClient
from ..limits import MAX_INTEGER, MAX_METRICS
from ..outbox import QueuedRun
from ..outbox.records import ROW, joined_names
from .clock import now_ms
from .flush_result import IAPFlushResult
from .lifecycle import LOCK, close, flush, sender_for
from .mlflow_files import MlflowFiles
from .never_raising import never_raising
from .plain_values import (
    artifact_folder,
    artifact_path_of,
    as_text,
    dataset_fields,
    dataset_tag,
    end_status,
    integer,
    milliseconds,
    model_name,
)
from .progress import show_link
from .run_creation import Mode
from .run_records import (
    Content,
    context_tags,
    curve_records,
    finish_record,
    metric_records,
    param_records,
    start_records,
    tag_records,
)
from .server_uri import server_uri

if TYPE_CHECKING:
    from mlflow.data.dataset import Dataset
    from typing_extensions import Self

_logger = logging.getLogger("mlflow_iap_callbacks")

# Types of names and of values that a journal returns unchanged.
_NAME_TYPES, _NUMBER_TYPES = {str}, {float, int, bool}

LogRow = Callable[[int, int, bytes], None]

# In place of the experiment, for a run whose key is MLflow's own id.
EXISTING = "id:"

# The part of a URL that opens a page of MLflow in *Model training* instead of *GenAI*.
TRAINING = "workflowType=machine_learning"
# Seconds that the end of a ``with`` block waits for the delivery, as does ``flush``: longer than an
# App Engine instance takes to restart.
SECONDS_TO_CLOSE = 60.0
# A timestamp below this is probably a step.
_JANUARY_1970_MS = 31 * 86_400_000


class IAPRun:
    """A handle for one MLflow run, to log to it from any thread and in any training loop.

    Only ``flush``, ``run_id`` and the end of a ``with`` block wait for the server. The other
    methods write records to a journal on disk, to be sent in the background, and never raise:
    values that cannot be logged are skipped with a warning. A copy in another process, made by
    pickle or fork, logs to the same run.

    A ``with`` block ends the run: as FINISHED, as FAILED after an exception, or as KILLED if Optuna
    pruned the trial. Without one, call ``finish``; a run that is still open when the process exits
    or is killed ends as FAILED. ``IAPMLflowCallback.run(trial)`` and ``IAPLightGBMCallback.run``
    are handles too; the callbacks end their runs.

    Args:
        run_id: MLflow's id of an existing run to log to. Default: a new run.
        experiment_name: experiment of a new run. It is created if it does not exist. Default:
            MLflow's active one (``mlflow.set_experiment``, MLFLOW_EXPERIMENT_ID,
            MLFLOW_EXPERIMENT_NAME), else *Default*.
        run_name: name of a new run. Default: a name that MLflow makes up.
        tags: tags of the run.
        parent_run_id: MLflow's id of a new run's parent. Default: none.
        tracking_uri: URI of the MLflow server. Default: MLflow's own (MLFLOW_TRACKING_URI).
        client: an MlflowClient to use instead of ``IAPMlflowClient(tracking_uri)``.

    Raises:
        IAPConfigurationError: the settings cannot work; see ``IAPMlflowClient``.
        TypeError, ValueError: an argument is wrong; the message says what to pass instead.

    Examples:
        ```python
        with IAPRun(experiment_name="images") as run:
            run.log_params({"learning_rate": 0.1, "layers": 3})
            for epoch in range(10):
                run.log_metrics({"loss": 1 / (epoch + 1)}, step=epoch)
            run.log_text("Done.", "notes.txt")
        ```
    """

    _run: QueuedRun | None
    _written: MlflowFiles | None = None  # what this process wrote
    # What to call the run when its URL is shown; None if it is not to be shown, or has been.
    _link_name: str | None = None
    # Whether a ``with`` block ends the run.
    _is_ended_by_with = True

    @checked
    def __init__(
        self,
        run_id: str | None = None,
        *,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        parent_run_id: str | None = None,
        tracking_uri: str | None = None,
        client: MlflowClient | None = None,
    ) -> None:
        of_new_run = {
            "experiment_name": experiment_name,
            "run_name": run_name,
            "parent_run_id": parent_run_id,
        }
        conflict = next((name for name, value in of_new_run.items() if value is not None), None)
        if run_id is not None and conflict is not None:
            raise ValueError(
                f"run_id and {conflict} are given, but an existing run has its own. Omit one of "
                "them."
            )
        client = client or IAPMlflowClient(tracking_uri)
        prepare(client)
        if run_id is not None:
            self.__setstate__((client, EXISTING, run_id))
            if tags:
                self.set_tags(tags)
            return
        self._begin(
            client,
            experiment_of(experiment_name),
            run_name=run_name,
            tags=tags,
            parent=parent_run_id,
            has_link=True,
        )

    def log_metric(
        self, key: str, value: float, timestamp: int | None = None, step: int | None = None
    ) -> None:
        """Log one point of a metric, as ``MlflowClient.log_metric`` does.

        Args:
            key: name of the metric.
            value: its value. NaN is not logged but counted in a tag.
            timestamp: milliseconds since 1970, UTC. Default: now.
            step: step of the point. Default: 0.
        """
        if step is None and isinstance(timestamp, int) and 0 <= timestamp < _JANUARY_1970_MS:
            _warn_of_timestamps_like_steps()
        self.log_metrics({key: value}, step, timestamp=timestamp)

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int | None = None,
        *,
        timestamp: int | None = None,
    ) -> None:
        """Log one point of each metric.

        Args:
            metrics: values by metric. NaN is not logged but counted in a tag, because it breaks
                MLflow's run page (mlflow#16555).
            step: step of all points. Default: 0.
            timestamp: milliseconds since 1970, UTC. Default: now.
        """
        time_ms = timestamp or now_ms()
        step = 0 if step is None else step
        # Called at each iteration of training, so the sender does everything that can wait.
        if (
            type(step) is type(time_ms) is int
            and abs(step) <= MAX_INTEGER
            and 0 < time_ms <= MAX_INTEGER
            and isinstance(metrics, dict)
            and len(metrics) <= MAX_METRICS
            and _NAME_TYPES.issuperset(map(type, metrics))
            and _NUMBER_TYPES.issuperset(map(type, metrics.values()))
        ):
            try:
                self._append("metrics", (step, time_ms, metrics))
                return
            except (ValueError, OverflowError):
                pass  # UTF-8 cannot encode a name, or a value is too large; the others are logged
        with never_raising(f"metrics at step {step!r}"):
            place = (integer(step), milliseconds(timestamp, now_ms()))
            self._append_all(metric_records(check("metrics", metrics), *place))

    def log_curve(
        self, name: str, points: Sequence[tuple[int, float]], *, timestamp: int | None = None
    ) -> None:
        """Log many points of one metric.

        Args:
            name: name of the metric.
            points: step and value of each point.
            timestamp: time of all points, in milliseconds since 1970, UTC. Default: now.
        """
        self._append_all(curve_records(name, points, milliseconds(timestamp, now_ms())))

    def log_param(self, key: str, value: Any) -> None:
        """Log a param, as ``MlflowClient.log_param`` does."""
        self.log_params({key: value})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params. Values are cut to 6,000 characters; a param keeps its first value."""
        with never_raising("params"):
            self._append_all(param_records(check("params", params)))

    def set_tag(self, key: str, value: Any) -> None:
        """Set a tag, as ``MlflowClient.set_tag`` does."""
        self.set_tags({key: value})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags. Values are cut to 8,000 characters."""
        with never_raising("tags"):
            self._append_all(tag_records(check("tags", tags)))

    def log_artifact(
        self, local_path: str | Path, artifact_path: str | None = None, *, copy: bool = True
    ) -> None:
        """Upload a file, or a folder with its contents.

        Args:
            local_path: path of the file or folder.
            artifact_path: folder in the run's artifacts. Default: their root.
            copy: whether to copy it at once, so that you may then change or delete it. Use False
                for large files that do not change.
        """
        with never_raising(f"artifact {str(local_path)!r:.200}"):
            to = artifact_folder(artifact_path)
            path = Path(check("local_path", local_path)).resolve(strict=True)
            kept = self._keep(path) if copy else str(path)
            self._append("artifact", {"path": kept, "is_copied": copy, "to": to})

    def log_artifacts(self, local_dir: str | Path, artifact_path: str | None = None) -> None:
        """Upload the contents of a folder, as ``MlflowClient.log_artifacts`` does.

        Args:
            local_dir: path of the folder; its contents are copied at once.
            artifact_path: folder in the run's artifacts. Default: their root.
        """
        with never_raising(f"artifacts {str(local_dir)!r:.200}"):
            for path in sorted(Path(check("local_path", local_dir)).iterdir()):
                self.log_artifact(path, artifact_path)

    def log_text(self, text: str, artifact_file: str) -> None:
        """Upload text as a file.

        Args:
            text: content of the file.
            artifact_file: path of the file in the run's artifacts.
        """
        with never_raising(f"artifact {artifact_file!r:.200}"):
            self._files().log_text(self.key, as_text(text), artifact_path_of(artifact_file))

    def log_dict(self, dictionary: dict[str, Any] | list[Any], artifact_file: str) -> None:
        """Upload a dict or list as a YAML or JSON file, as ``MlflowClient.log_dict`` does.

        Args:
            dictionary: the content.
            artifact_file: path of the file in the run's artifacts. The format is YAML if it ends in
                ``.yaml`` or ``.yml``, else JSON.
        """
        with never_raising(f"artifact {artifact_file!r:.200}"):
            self._files().log_dict(self.key, cast(Any, dictionary), artifact_path_of(artifact_file))

    def log_figure(
        self, figure: Any, artifact_file: str, *, save_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Upload a figure, as ``MlflowClient.log_figure`` does.

        Args:
            figure: a Matplotlib or Plotly figure.
            artifact_file: path of the file in the run's artifacts; its extension sets the format.
            save_kwargs: arguments of the function that writes the file.
        """
        with never_raising(f"artifact {artifact_file!r:.200}"):
            self._files().log_figure(
                self.key, figure, artifact_path_of(artifact_file), save_kwargs=save_kwargs
            )

    def log_image(
        self,
        image: Any,
        artifact_file: str | None = None,
        key: str | None = None,
        step: int | None = None,
        timestamp: int | None = None,
    ) -> None:
        """Upload an image, as ``MlflowClient.log_image`` does.

        Args:
            image: a NumPy array of shape (height, width) or (height, width, channels), a PIL image
                or an ``mlflow.Image``.
            artifact_file: path of the file in the run's artifacts. Give either this or ``key``.
            key: name of a series of images, which MLflow shows as a chart.
            step: step of the image in its series. Default: 0.
            timestamp: milliseconds since 1970, UTC. Default: now.
        """
        with never_raising(f"the image {(artifact_file or key)!r:.200}"):
            path = None if artifact_file is None else artifact_path_of(artifact_file)
            self._files().log_image(self.key, image, path, key, step, timestamp, True)

    def log_table(self, data: Any, artifact_file: str) -> None:
        """Upload a table, or append to it, as ``MlflowClient.log_table`` does.

        It can be read by ``mlflow.load_table``. Rows are appended to those that this handle logged
        to the same file before. A table that another process logged is replaced.

        Args:
            data: a dict of columns, or a pandas DataFrame.
            artifact_file: path of the file in the run's artifacts, which ends in ``.json`` or
                ``.parquet``.
        """
        with never_raising(f"the table {artifact_file!r:.200}"):
            self._files().log_table(self.key, data, artifact_path_of(artifact_file))

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
            path = Path(check("model_path", local_path)).resolve(strict=True)
            kept = self._keep(path)
            content = {
                "path": kept,
                "is_copied": True,
                "key": uuid.uuid4().hex,
                "name": model_name(name),
                "registered_name": registered_name,
            }
            self._append("model", content)

    def log_input(
        self,
        dataset: Dataset,
        context: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log a data set as an input of the run, as ``mlflow.log_input`` does.

        Args:
            dataset: a data set of ``mlflow.data``.
            context: what it is used for, such as ``training``.
            tags: further tags of this use of the data set.
        """
        with never_raising("the data set"):
            texts = {} if context is None else {MLFLOW_DATASET_CONTEXT: context}
            texts = {name: dataset_tag(text) for name, text in {**(tags or {}), **texts}.items()}
            fields = dataset_fields(check("dataset", dataset))
            self._append("input", {"dataset": fields, "tags": texts})

    def finish(self, status: str = "FINISHED", *, end_time: int | None = None) -> None:
        """End the run when everything logged so far has been delivered. The call does not wait.

        Args:
            status: FINISHED, FAILED or KILLED.
            end_time: milliseconds since 1970, UTC. Default: now.
        """
        time_ms = milliseconds(end_time, now_ms())
        self._append(*finish_record(end_status(status), time_ms))
        if self._run is not None:
            self._run.is_ended = True

    @checked
    def flush(self, timeout: float | None = 60.0) -> IAPFlushResult:
        """Wait until everything that this process logged to the server is delivered.

        Args:
            timeout: seconds to wait; None for no limit. The default is longer than an App Engine
                instance takes to restart.

        Returns:
            How many records were delivered, are waiting, and were refused. The result is true if
            all were delivered. Those that are waiting are sent later.
        """
        result = flush(self._client, timeout)
        self.show_link()
        return result

    @checked
    def run_id(self, timeout: float | None = 60.0) -> str:
        """Wait for MLflow's id of the run, and return it.

        Args:
            timeout: seconds to wait; None for no limit.

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
    def url(self) -> str | None:
        """URL of the run's page in MLflow; None if it is not known yet, or there is no server."""
        uri, run = self._client.tracking_uri, self._run
        if run is None or None in (run.run_id, run.experiment_id) or not uri.startswith("http"):
            return None
        page = f"{server_uri(uri)}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
        return f"{page}?{TRAINING}"

    @property
    def known_id(self) -> str | None:
        """MLflow's id of the run; None if it is not known yet."""
        return None if self._run is None else self._run.run_id

    @property
    def client(self) -> MlflowClient:
        """The client that delivers the run."""
        return self._client

    def show_link(self) -> None:
        """Show the URL of the run, once, as soon as it is known."""
        name, run = self._link_name, self._run
        if name is None or run is None or None in (run.run_id, run.experiment_id):
            return
        self._link_name = None
        url = self.url
        if url is not None:
            with never_raising("the link to the run"):
                show_link(name, url)

    def __enter__(self) -> Self:
        if self._is_ended_by_with and self._experiment == EXISTING:
            self._append("reopen", {})
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._is_ended_by_with:
            self.finish("FINISHED" if error is None else status_of(error))
            close(self._client, SECONDS_TO_CLOSE)
            self.show_link()

    def __repr__(self) -> str:
        return f"<IAPRun {self.url or self.key}>"

    def _repr_html_(self) -> str:
        url = self.url
        if url is None:
            return "<p>A run that MLflow has not created yet.</p>"
        return f"<p>Run: <a href='{html.escape(url)}' target='_blank'>{html.escape(url)}</a></p>"

    def __getstate__(self) -> tuple[MlflowClient, str, str]:
        return self._client, self._experiment, self.key

    def __setstate__(self, state: tuple[MlflowClient, str, str]) -> None:
        self._client, self._experiment, self.key = state
        self._run = None

    def _begin(
        self,
        client: MlflowClient,
        experiment: str,
        *,
        key: str | None = None,
        mode: Mode = Mode.NEW,
        run_name: str | None,
        start_time: int | None = None,
        has_link: bool = False,
        **start: Any,
    ) -> None:
        """Append the start of a new run; see ``start_records``."""
        self.__setstate__((client, experiment, key or uuid.uuid4().hex))
        sender = sender_for(client)
        self._run = sender.begin(self.key, experiment)
        self._run.is_urgent = has_link or mode in (Mode.SHARED, Mode.RESUMED)
        if has_link:
            self._link_name = "Run" if run_name is None else f"Run {run_name}"
        with never_raising("the run"):
            self._append_all(
                start_records(
                    key=self.key,
                    experiment=experiment,
                    logged_at=sender.clock.time(),
                    run_name=run_name,
                    start_time=milliseconds(start_time, now_ms()),
                    mode=mode,
                    **start,
                )
            )

    def _files(self) -> MlflowFiles:
        with LOCK:
            if self._written is None:
                self._written = MlflowFiles(self.log_artifact, self.set_tags)
            return self._written

    def _keep(self, path: Path) -> str:
        """Copy a file or folder to the journal, and return the path of the copy."""
        return self._queued().outbox.copy_artifact(path)

    def _append(self, kind: str, content: Any) -> None:
        run = self._run
        if run is None or run.is_ended or not run.outbox.intake.append(run.number, kind, content):
            run = self._queued(to_write=True)
            run.outbox.intake.append(run.number, kind, content)
        if self._link_name is not None and run.experiment_id is not None:
            self.show_link()

    def _append_all(self, records: Iterable[Content]) -> None:
        for kind, content in records:
            self._append(kind, content)

    def _queued(self, *, to_write: bool = False) -> QueuedRun:
        """Return the run in this process's outbox; add it if another process began it."""
        with LOCK:
            run = self._run
            is_over = to_write and run is not None and run.is_ended
            if run is None or is_over or not run.outbox.intake.is_open:
                run_id = None if run is None else run.run_id
                if self._experiment == EXISTING:
                    run_id = self.key
                experiment_id = None if run is None else run.experiment_id
                run = sender_for(self._client).join(self.key, self._experiment, run_id)
                run.experiment_id = run.experiment_id or experiment_id
                self._run = run
            return run


def row_logger(run: IAPRun, names: Sequence[str]) -> LogRow | None:
    """Return a function that logs values of these metrics at one step, faster than ``log_metrics``.

    Its arguments are the step, the time in milliseconds since 1970, UTC, and the values in the form
    of ``doubles``. It checks nothing.

    Returns:
        The function; None if ``log_metrics`` has to be used for these names.
    """
    joined = joined_names(names) if len(names) <= MAX_METRICS else None
    if joined is None or as_text(joined) != joined:  # as_text replaces what UTF-8 cannot encode
        return None
    append = run._append
    return lambda step, time_ms, values: append(ROW, (step, time_ms, joined, values))


def status_of(error: BaseException) -> str:
    """Return the status of a run that ends with an exception."""
    optuna = sys.modules.get("optuna")
    is_pruned = optuna is not None and isinstance(error, optuna.TrialPruned)
    return "KILLED" if is_pruned else "FAILED"


@functools.cache
def _warn_of_timestamps_like_steps() -> None:
    _logger.warning(
        "log_metric was given a timestamp in January 1970. If it is a step, pass it by name, as "
        "step=STEP: the third argument is the timestamp, as in MLflow's client."
    )


def experiment_of(name: str | None) -> str:
    """Return an experiment in the form that ``RunWriter`` takes.

    Without a name, it is MLflow's active one: the one set by ``mlflow.set_experiment``, else the
    one in the environment variables, else *Default*.
    """
    if name is not None:
        return f"name:{name}"
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if "MLFLOW_EXPERIMENT_ID" not in os.environ and name is not None:
        return f"name:{name}"
    return f"id:{os.environ.get('MLFLOW_EXPERIMENT_ID', '0')}"


def prepare(client: MlflowClient) -> None:
    """Prepare the delivery. Call this in the main thread, before training begins."""
    sender_for(client)  # sets up delivery on SIGTERM
    context_tags()
