"""An MLflow server in memory and its client, without a network, and with faults on request.

server = FakeMlflow()
client = FakeClient(server)              # an IAPMlflowClient, so RunWriter and callbacks take it
server.lose_answer("create_run")         # processed once, and the response is lost
server.is_away = True                    # every request fails
server.run("key").points                 # what MLflow holds
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from mlflow import MlflowClient
from mlflow.entities import (
    DatasetInput,
    Experiment,
    LifecycleStage,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunInputs,
    RunOutputs,
    RunStatus,
    RunTag,
    ViewType,
)
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode
from mlflow.protos.service_pb2 import FinalizeLoggedModel, LogOutputs
from mlflow.store.entities import PagedList
from mlflow.utils import validation

from mlflow_iap_callbacks import IAPMlflowClient, IAPUnavailableError, IAPUnknownOutcomeError
from mlflow_iap_callbacks.tags import RUN_KEY_TAG

_Method = TypeVar("_Method", bound=Callable[..., Any])
_servers: WeakValueDictionary[str, FakeMlflow] = WeakValueDictionary()


@dataclass
class FakeRun:
    """A run in MLflow.

    Attributes:
        points: name, step, timestamp and value of each, in the order of their arrival.
        artifacts: content by path.
    """

    run_id: str
    experiment_id: str
    name: str
    start_time: int
    end_time: int | None = None
    status: str = "RUNNING"
    is_deleted: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: dict[tuple[str, int, int, float], None] = field(default_factory=dict)
    inputs: dict[tuple[str, str], DatasetInput] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    outputs: list[LoggedModelOutput] = field(default_factory=list)

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Step and value of a metric's points, in order of arrival."""
        return [(step, value) for name, step, _, value in self.points if name == metric]

    def entity(self) -> Run:
        """The run as a client sees it."""
        stage = LifecycleStage.DELETED if self.is_deleted else LifecycleStage.ACTIVE
        latest: dict[str, Metric] = {}
        for name, step, timestamp, value in self.points:
            known = latest.get(name)
            if known is None or (step, timestamp) >= (known.step, known.timestamp):
                latest[name] = Metric(name, value, timestamp, step)
        return Run(
            RunInfo(
                self.run_id,
                self.experiment_id,
                "user",
                self.status,
                self.start_time,
                self.end_time,
                stage,
                f"fake:/{self.experiment_id}/{self.run_id}/artifacts",
                run_name=self.name,
            ),
            RunData(
                list(latest.values()),
                [Param(*param) for param in self.params.items()],
                [RunTag(*tag) for tag in self.tags.items()],
            ),
            RunInputs(list(self.inputs.values())),
            RunOutputs(self.outputs),
        )


@dataclass
class _Fault:
    method: str
    error: BaseException
    is_carried_out: bool
    is_late: bool
    times: float


class FakeMlflow:
    """The server: its data, the requests it got, and its faults.

    Attributes:
        calls: names of the client's methods that were called, in order.
        is_away: whether every request fails.
        on_request: called with the method's name before each request, in the thread that sends it.
    """

    def __init__(self, uri: str = "https://mlflow.example") -> None:
        self.uri = uri
        self.experiments: dict[str, Experiment] = {}
        self.runs: dict[str, FakeRun] = {}
        self.models: dict[str, LoggedModel] = {}
        self.model_metrics: dict[str, list[Metric]] = {}
        self.model_files: dict[str, dict[str, bytes]] = {}
        self.registered: dict[str, list[ModelVersion]] = {}
        self.calls: list[str] = []
        self.is_away = False
        self.on_request: Callable[[str], None] = lambda method: None
        self.lock = threading.RLock()
        self._faults: list[_Fault] = []
        self._late: deque[Callable[[], Any]] = deque()
        self._random = random.Random(0)
        self.add_experiment("Default", "0")
        _servers[uri] = self

    def lose_answer(
        self, method: str, error: BaseException | None = None, *, times: float = 1
    ) -> None:
        """Process the next calls of a method, and lose their responses."""
        self._add_fault(method, error, times, is_carried_out=True)

    def drop(self, method: str, error: BaseException | None = None, *, times: float = 1) -> None:
        """Let the next calls of a method fail before they are processed."""
        self._add_fault(method, error, times)

    def delay(self, method: str, error: BaseException | None = None, *, times: float = 1) -> None:
        """Let the next calls of a method fail, and process them in ``catch_up``."""
        self._add_fault(method, error, times, is_late=True)

    def refuse(self, method: str, message: str = "refused", *, times: float = 1) -> None:
        """Reject the next calls of a method permanently."""
        self.drop(method, _invalid(message), times=times)

    def catch_up(self) -> None:
        """Process the delayed requests."""
        with self.lock:
            while self._late:
                with suppress(MlflowException):  # nobody gets its response
                    self._late.popleft()()

    def clear_faults(self) -> None:
        """End all faults and the outage."""
        self._faults.clear()
        self.is_away = False

    def add_experiment(self, name: str, experiment_id: str | None = None) -> str:
        experiment_id = experiment_id or str(len(self.experiments))
        experiment = Experiment(experiment_id, name, "fake:/", LifecycleStage.ACTIVE)
        self.experiments[experiment_id] = experiment
        return experiment_id

    def runs_of(self, key: str) -> list[FakeRun]:
        """The runs with a run key that are not deleted."""
        runs = self.runs.values()
        return [run for run in runs if run.tags.get(RUN_KEY_TAG) == key and not run.is_deleted]

    def run(self, key: str) -> FakeRun:
        """The one run with a run key."""
        (run,) = self.runs_of(key)
        return run

    def active(self, run_id: str) -> FakeRun:
        run = self.known(run_id)
        if run.is_deleted:
            raise _invalid(f"The run {run_id} must be in the 'active' state.")
        return run

    def known(self, run_id: str) -> FakeRun:
        if run_id not in self.runs:
            raise _absent(f"Run with id={run_id} not found")
        return self.runs[run_id]

    def new_id(self) -> str:
        """An id like MLflow's: 32 digits, without order, and the same ones in each test."""
        return f"{self._random.getrandbits(128):032x}"

    def serve(self, method: str, carry_out: Callable[[], Any]) -> Any:
        """Process one request, or let it fail as requested."""
        self.on_request(method)
        with self.lock:
            self.calls.append(method)
            if self.is_away:
                raise IAPUnavailableError("The server is away.")
            fault = next((fault for fault in self._faults if fault.method == method), None)
            if fault is None:
                return carry_out()
            fault.times -= 1
            if fault.times <= 0:
                self._faults.remove(fault)
            if fault.is_late:
                self._late.append(carry_out)
            if fault.is_carried_out:
                with suppress(MlflowException):
                    carry_out()
            raise fault.error

    def _add_fault(
        self,
        method: str,
        error: BaseException | None,
        times: float,
        *,
        is_carried_out: bool = False,
        is_late: bool = False,
    ) -> None:
        if error is None and method == "create_run" and (is_carried_out or is_late):
            error = IAPUnknownOutcomeError("The answer was lost.", is_under_way=is_late)
        error = error or IAPUnavailableError(f"{method} failed.")
        self._faults.append(_Fault(method, error, is_carried_out, is_late, times))


def _request(method: _Method) -> _Method:
    """A method of the client that is one request to the server."""

    @wraps(method)
    def call(client: _Requests, *args: Any, **kwargs: Any) -> Any:
        return client.server.serve(method.__name__, partial(method, client, *args, **kwargs))

    return call  # type: ignore[return-value]


class _Requests(MlflowClient):
    def __init__(self, server: FakeMlflow) -> None:
        self.server = server
        # For what has no method in the public client.
        self._tracking_client: Any = SimpleNamespace(store=self, tracking_uri=server.uri)

    def __reduce__(self) -> tuple[Any, ...]:
        return _client_of, (type(self), self.server.uri)

    @_request
    def get_experiment_by_name(self, name: str) -> Experiment | None:
        experiments = self.server.experiments.values()
        return next((each for each in experiments if each.name == name), None)

    @_request
    def search_experiments(self, *_: Any, **__: Any) -> PagedList[Experiment]:
        return PagedList(list(self.server.experiments.values()), None)

    @_request
    def create_experiment(
        self,
        name: str,
        artifact_location: str | None = None,
        tags: dict[str, Any] | None = None,
        *_: Any,
        **__: Any,
    ) -> str:
        if any(each.name == name for each in self.server.experiments.values()):
            raise _error(f"Experiment '{name}' already exists.", "RESOURCE_ALREADY_EXISTS")
        experiment_id = self.server.add_experiment(name)
        self.server.experiments[experiment_id].tags.update(tags or {})
        return experiment_id

    @_request
    def set_experiment_tag(self, experiment_id: str, key: str, value: Any) -> None:
        self.server.experiments[experiment_id].tags[key] = str(value)

    @_request
    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Run:
        experiment = self.server.experiments.get(experiment_id)
        if experiment is None:
            raise _absent(f"No Experiment with id={experiment_id} exists")
        if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            raise _invalid(f"The experiment {experiment_id} must be in the 'active' state.")
        validation._validate_batch_log_data([], [], [RunTag(*tag) for tag in (tags or {}).items()])
        run_id = self.server.new_id()
        name = run_name or f"run-{len(self.server.runs)}"
        run = FakeRun(run_id, experiment_id, name, start_time or 0)
        run.tags = {**(tags or {}), "mlflow.runName": name}
        self.server.runs[run_id] = run
        return run.entity()

    @_request
    def get_run(self, run_id: str) -> Run:
        return self.server.known(run_id).entity()

    @_request
    def search_runs(
        self,
        experiment_ids: Sequence[str],
        filter_string: str = "",
        run_view_type: int = ViewType.ACTIVE_ONLY,
        max_results: int = 1000,
        order_by: Sequence[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[Run]:
        wanted = re.findall(r"tags\.`([^`]+)` = '([^']*)'", filter_string)
        prefixes = re.findall(r"tags\.`([^`]+)` LIKE '([^'%_]*)%'", filter_string)
        assert filter_string.count("`") == 2 * len(wanted + prefixes), filter_string
        found = [
            run
            for run in self.server.runs.values()
            if run.experiment_id in experiment_ids
            and all(run.tags.get(name) == text for name, text in wanted)
            and all(run.tags.get(name, "").startswith(text) for name, text in prefixes)
            and not (run.is_deleted and run_view_type == ViewType.ACTIVE_ONLY)
        ]
        found.sort(key=lambda run: (-run.start_time, run.run_id))
        first = int(page_token or 0)
        page = found[first : first + max_results]
        token = str(first + max_results) if len(found) > first + max_results else None
        return PagedList([run.entity() for run in page], token)

    @_request
    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        points = self.server.known(run_id).points
        return [
            Metric(name, value, time, step) for name, step, time, value in points if name == key
        ]

    @_request
    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> None:
        validation._validate_batch_log_data(metrics, params, tags)
        validation._validate_batch_log_limits(metrics, params, tags)
        validation._validate_param_keys_unique(params)
        run = self.server.active(run_id)
        for param in params:
            if run.params.get(param.key, param.value) != param.value:
                raise _invalid(f"Changing param values is not allowed: {param.key!r}")
        run.params.update({param.key: param.value for param in params})
        for metric in metrics:
            if metric.model_id is not None:
                self.server.model_metrics.setdefault(metric.model_id, []).append(metric)
            run.points[metric.key, metric.step, metric.timestamp, metric.value] = None
        run.tags.update({tag.key: tag.value for tag in tags})

    @_request
    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        self.server.active(run_id).tags[key] = str(value)

    @_request
    def delete_tag(self, run_id: str, key: str) -> None:
        if self.server.active(run_id).tags.pop(key, None) is None:
            raise _absent(f"No tag with name: {key} in run with id {run_id}")

    @_request
    def delete_run(self, run_id: str) -> None:
        self.server.known(run_id).is_deleted = True

    @_request
    def restore_run(self, run_id: str) -> None:
        self.server.known(run_id).is_deleted = False

    @_request
    def update_run_info(
        self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None
    ) -> None:
        run = self.server.active(run_id)
        run.status = run.status if run_status is None else RunStatus.to_string(run_status)
        run.end_time = run.end_time if end_time is None else end_time
        run.name = run.name if run_name is None else run_name

    @_request
    def log_inputs(
        self, run_id: str, datasets: Sequence[DatasetInput] | None = None, models: Any = None
    ) -> None:
        run = self.server.active(run_id)
        for given in datasets or ():
            run.inputs.setdefault((given.dataset.name, given.dataset.digest), given)

    @_request
    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        path = Path(local_path)
        to = Path(artifact_path or "", path.name)
        self.server.active(run_id).artifacts.update(_read(path, to))

    @_request
    def create_logged_model(
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
        model_type: str | None = None,
    ) -> LoggedModel:
        model_id = f"m-{self.server.new_id()}"
        model = LoggedModel(
            *(experiment_id, model_id, str(name), f"fake:/{model_id}", 0, 0),
            source_run_id=source_run_id,
            status=LoggedModelStatus.PENDING,
            tags=tags,
            params=params,
            model_type=model_type,
        )
        self.server.models[model_id] = model
        return model

    @_request
    def log_model_params(self, model_id: str, params: dict[str, str]) -> None:
        self.server.models[model_id]._params = {**self.server.models[model_id].params, **params}

    @_request
    def search_logged_models(
        self, experiment_ids: Sequence[str], filter_string: str | None = None, *_: Any, **__: Any
    ) -> PagedList[LoggedModel]:
        found = [
            model
            for model in self.server.models.values()
            if model.experiment_id in experiment_ids
            and filter_string == f"source_run_id = '{model.source_run_id}'"
        ]
        return PagedList(found, None)

    @_request
    def log_model_artifacts(
        self, model_id: str, local_dir: str, artifact_path: str | None = None
    ) -> None:
        files = self.server.model_files.setdefault(model_id, {})
        files.update(_read(Path(local_dir), Path()))

    @_request
    def finalize_logged_model(self, model_id: str, status: Any) -> LoggedModel:
        self.server.models[model_id].status = status
        return self.server.models[model_id]

    @_request
    def get_logged_model(self, model_id: str, *_: Any, **__: Any) -> LoggedModel:
        if model_id not in self.server.models:
            raise _absent(f"Logged model with ID '{model_id}' not found.")
        return self.server.models[model_id]

    @_request
    def _call_endpoint(self, api: Any, body: str, endpoint: str | None = None) -> None:
        given = json.loads(body)
        if api is LogOutputs:
            outputs = self.server.active(given["run_id"]).outputs
            known = {output.model_id for output in outputs}
            if known & {model["model_id"] for model in given["models"]}:
                raise _error("(sqlite3.IntegrityError) UNIQUE constraint failed", "BAD_REQUEST")
            outputs += [LoggedModelOutput(**model) for model in given["models"]]
        elif api is FinalizeLoggedModel:
            model_id = (endpoint or "").rpartition("/")[2]
            if model_id not in self.server.models or model_id != given["model_id"]:
                raise _absent(f"Logged model with ID '{model_id}' not found.")
            self.server.models[model_id].status = LoggedModelStatus(given["status"][13:])
        else:
            raise NotImplementedError(api.__name__)

    @_request
    def log_outputs(self, run_id: str, models: list[LoggedModelOutput]) -> None:
        self.server.active(run_id).outputs += models

    @_request
    def create_registered_model(self, name: str, *_: Any, **__: Any) -> RegisteredModel:
        if name in self.server.registered:
            raise _error(f"Registered Model (name={name}) exists.", "RESOURCE_ALREADY_EXISTS")
        self.server.registered[name] = []
        return RegisteredModel(name)

    @_request
    def search_model_versions(
        self, filter_string: str | None = None, *_: Any, **__: Any
    ) -> PagedList[ModelVersion]:
        versions = [each for versions in self.server.registered.values() for each in versions]
        found = [each for each in versions if filter_string == f"run_id = '{each.run_id}'"]
        return PagedList(found, None)

    @_request
    def create_model_version(
        self, name: str, source: str, run_id: str | None = None, *_: Any, **__: Any
    ) -> ModelVersion:
        versions = self.server.registered[name]
        version = ModelVersion(name, str(len(versions) + 1), 0, source=source, run_id=run_id)
        versions.append(version)
        return version


class FakeClient(_Requests, IAPMlflowClient):
    """This package's client for a fake server; a pickled copy uses the same server."""


class FakePlainClient(_Requests):
    """MLflow's own client for a fake server; its errors do not say if a request took effect."""


def _client_of(kind: type[_Requests], uri: str) -> _Requests:
    return kind(_servers[uri])


def _read(path: Path, to: Path) -> dict[str, bytes]:
    """Content of a file, or of all files in a folder."""
    if not path.is_dir():
        return {to.as_posix(): path.read_bytes()}
    files = [file for file in path.rglob("*") if file.is_file()]
    return {(to / file.relative_to(path)).as_posix(): file.read_bytes() for file in files}


def _error(message: str, code: str) -> MlflowException:
    return MlflowException(message, error_code=ErrorCode.Value(code))


def _invalid(message: str) -> MlflowException:
    return _error(message, "INVALID_PARAMETER_VALUE")


def _absent(message: str) -> MlflowException:
    return _error(message, "RESOURCE_DOES_NOT_EXIST")
