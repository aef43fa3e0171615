"""MLflow's stores for servers, with writes in the background and reads that wait for them."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any

import requests
from mlflow.entities import (
    DatasetInput,
    LoggedModel,
    LoggedModelInput,
    LoggedModelParameter,
    LoggedModelStatus,
    LoggedModelTag,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.service_pb2 import FinalizeLoggedModel
from mlflow.store.model_registry.rest_store import RestStore as ModelRegistryRestStore
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils import validation
from mlflow.utils.async_logging.run_operations import RunOperations
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.proto_json_utils import message_to_json
from mlflow.utils.rest_utils import get_logged_model_endpoint

from ..delivery.clock import now_ms
from ..delivery.provisional_models import new_provisional_id
from ..delivery.refusals import first_line, refusal
from ..delivery.sender import is_delivering
from ..errors import IAPUnavailableError
from ..limits import MAX_DATASET_LENGTHS
from ..tags import MODEL_KEY_TAG
from . import (
    artifacts,
    forked_pools,  # noqa: F401 - registers what a fork does
)
from .endpoints import Way, way_of
from .writes import Writes

_logger = logging.getLogger("mlflow_iap_callbacks")

_MOST_KNOWN = 1000
# Functions of MLflow that get a run as this process knows it. All others get the server's.
_SHOWS_LINK = ("mlflow.tracking._tracking_service.client", "_log_url")
_MONITORS = ("mlflow.system_metrics.system_metrics_monitor", "monitor")  # reads only its status
_LOGS_MODEL = ("mlflow.models.model", "log")
# Modules that log models for the user, who never sees their ids. transformers has a callback of
# its own, which MLflow's autologging only adds.
_AUTOLOGGING = (
    "mlflow.utils.autologging_utils.safety",
    "transformers.integrations.integration_utils",
)
_LOGS_MODEL_METRICS = ("mlflow.models.model", "log_model_metrics_for_step")
# Modules whose functions may be called between such a function and the store.
_CLIENTS = (
    *("mlflow.tracking.client", "mlflow.tracking._tracking_service.", "mlflow.telemetry."),
    __name__,
)
_MLFLOW = ("mlflow.", "contextlib", __name__)


class BackgroundStore(RestStore):
    """MLflow's tracking store for a server, with writes in the background.

    Args:
        writes: what this process logs to the server.
    """

    def __init__(self, writes: Writes) -> None:
        super().__init__(partial(get_default_host_creds, writes.tracking_uri))
        self._writes = writes
        # Runs as the server last returned them, with the name, status and end set by this process.
        self._known: OrderedDict[str, Run] = OrderedDict()
        # The run whose params could not be read in time for a model that is about to be logged.
        self._unanswered = threading.local()

    def create_run(self, *args: Any, **kwargs: Any) -> Run:
        return self._remember(super().create_run(*args, **kwargs))

    def get_run(self, run_id: str) -> Run:
        known = None if is_delivering() else self._known.get(run_id)
        if known is not None and (_caller(_SHOWS_LINK) or _caller(_MONITORS)):
            return known
        if known is not None and _caller(_LOGS_MODEL):  # it reads the run's params for the model
            if _is_autologging():
                return Run(known.info, RunData())
            if not self._writes.wait():
                self._unanswered.run_id = run_id
                return Run(known.info, RunData())
        frame = None if known is None else _caller(_LOGS_MODEL_METRICS)
        if known is not None and frame is not None and {"model_id", "step"} <= set(frame):
            # It logs the run's points of this step again for the model. The delivery does this
            # instead, so here it finds none.
            content = {"model_id": frame["model_id"], "step": frame["step"]}
            self._writes.run(run_id).append("model_metrics", content)
            return Run(known.info, RunData())
        return self._remember(super().get_run(run_id))

    def restore_run(self, run_id: str) -> None:
        super().restore_run(run_id)
        self._writes.run(run_id).forget_refusal()

    def update_run_info(
        self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None
    ) -> RunInfo:
        if is_delivering():
            info: RunInfo = super().update_run_info(run_id, run_status, end_time, run_name)
            return info
        if run_id not in self._known:
            self.get_run(run_id)
        known = self._known[run_id]
        proto = known.info.to_proto()
        values = {"status": run_status, "end_time": end_time, "run_name": run_name or None}
        for name, value in values.items():
            if value is not None:
                setattr(proto, name, value)
        status = None if run_status is None else RunStatus.to_string(run_status)
        content = {"status": status, "end_time": end_time, "name": run_name}
        self._writes.run(run_id).append("update", content)
        known._info = RunInfo.from_proto(proto)
        return known.info

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric],
        params: Sequence[Param],
        tags: Sequence[RunTag],
    ) -> None:
        if is_delivering():
            super().log_batch(run_id, metrics, params, tags)
            return
        points = [_point(metric) for metric in metrics]
        _check(run_id, metrics, params, tags)
        run = self._writes.run(run_id)
        if points:
            run.append("points", points)
        if params:
            run.append("params", {param.key: param.value for param in params})
        if tags:
            run.append("tags", {tag.key: tag.value for tag in tags})

    def log_metric(self, run_id: str, metric: Metric) -> None:
        self.log_batch(run_id, [metric], [], [])

    def log_param(self, run_id: str, param: Param) -> None:
        self.log_batch(run_id, [], [param], [])

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        self.log_batch(run_id, [], [], [tag])

    def log_batch_async(
        self,
        run_id: str,
        metrics: Sequence[Metric],
        params: Sequence[Param],
        tags: Sequence[RunTag],
    ) -> RunOperations:
        # MLflow's queue would keep it in memory only.
        self.log_batch(run_id, metrics, params, tags)
        return RunOperations([])

    def log_inputs(
        self,
        run_id: str,
        datasets: list[DatasetInput] | None = None,
        models: list[LoggedModelInput] | None = None,
    ) -> None:
        if is_delivering():
            super().log_inputs(run_id, datasets, models)
            return
        for each in datasets or ():
            fields = {name: getattr(each.dataset, name) for name in MAX_DATASET_LENGTHS}
            tags = {tag.key: tag.value for tag in each.tags}
            self._writes.run(run_id).append("input", {"dataset": fields, "tags": tags})
        if models:
            super().log_inputs(run_id, None, models)

    def create_logged_model(
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: list[LoggedModelTag] | None = None,
        params: list[LoggedModelParameter] | None = None,
        model_type: str | None = None,
    ) -> LoggedModel:
        given = (experiment_id, name, source_run_id, tags, params, model_type)
        if is_delivering():
            return self._create_now(*given)
        later = self._provisional_model(*given)
        if later is not None and _is_autologging():  # the user never sees its id
            self._create_later(later)
            return later
        try:
            if later is not None and self._unanswered.__dict__.pop("run_id", None):
                raise IAPUnavailableError("The server did not respond in time.")
            model = self._create_now(*given)
            if model.source_run_id:
                self._use_model(model)
            return model
        except (MlflowException, requests.RequestException) as error:
            if later is None or refusal(error) is not None:
                raise
            self._create_later(later)
            _logger.warning(
                "MLflow will create the logged model %r later, and choose its id then. Use the id "
                "%s in this process; elsewhere, find the model by its tag `%s`, which holds "
                "this id. %s",
                *(name, later.model_id, MODEL_KEY_TAG, first_line(error)),
            )
            return later

    def _create_now(self, *given: Any) -> LoggedModel:
        model: LoggedModel = super().create_logged_model(*given)
        return model

    def _provisional_model(
        self,
        experiment_id: str,
        name: str | None,
        run_id: str | None,
        tags: list[LoggedModelTag] | None,
        params: list[LoggedModelParameter] | None,
        model_type: str | None,
    ) -> LoggedModel | None:
        """Return a model that MLflow can create later; None if its name or location is unknown."""
        run = self._known.get(str(run_id))
        folder, end, _ = str(run and run.info.artifact_uri).partition(f"/{run_id}/artifacts")
        if not name or not end:
            return None
        key, now = new_provisional_id(), now_ms()
        return LoggedModel(
            *(experiment_id, key, name, f"{folder}/models/{key}/artifacts", now, now),
            model_type=model_type,
            source_run_id=run_id,
            status=LoggedModelStatus.PENDING,
            tags=tags,
            params=params,
        )

    def _create_later(self, model: LoggedModel) -> None:
        content = {
            "key": model.model_id,
            "experiment_id": model.experiment_id,
            "name": model.name,
            "tags": model.tags,
            "params": model.params,
            "model_type": model.model_type,
            # `Model.log` gives the model its run's params, but `get_run` may have left them out.
            "has_run_params": _caller(_LOGS_MODEL, _MLFLOW) is not None,
        }
        self._writes.run(str(model.source_run_id)).append("model_start", content)
        self._use_model(model)

    def _use_model(self, model: LoggedModel) -> None:
        self._writes.add_model(model)
        run_id = str(model.source_run_id)
        artifacts.use(self._writes, model.artifact_location, run_id, model.model_id)

    def get_logged_model(self, model_id: str, *args: Any, **kwargs: Any) -> LoggedModel:
        known = None if is_delivering() else self._writes.models.get(model_id)
        if known is not None and _caller(_LOGS_MODEL):
            return known
        found: LoggedModel = super().get_logged_model(model_id, *args, **kwargs)
        return found

    def finalize_logged_model(self, model_id: str, status: LoggedModelStatus) -> LoggedModel:
        model = self._writes.models.get(model_id)
        if model is None or is_delivering():
            found: LoggedModel = super().finalize_logged_model(model_id, status)
            return found
        message = FinalizeLoggedModel(model_id=model_id, status=status.to_proto())
        endpoint = get_logged_model_endpoint(model_id)
        self._call_endpoint(FinalizeLoggedModel, message_to_json(message), endpoint=endpoint)
        proto = model.to_proto()
        proto.info.status = status.to_proto()
        ended: LoggedModel = LoggedModel.from_proto(proto)
        self._writes.models[model_id] = ended
        return ended

    def flush_async_logging(self) -> None:
        self._writes.flush()

    def _call_endpoint(
        self, api: Any, json_body: Any = None, endpoint: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if not is_delivering():
            way = way_of(api.__name__)
            if way is Way.IN_BACKGROUND and self._is_appended(api, json_body, endpoint):
                return api.Response()
            if way is not Way.AT_ONCE:
                self._writes.wait()
            json_body = self._writes.with_model_ids(json_body)
            endpoint = self._writes.with_model_ids(endpoint)
        return super()._call_endpoint(api, json_body, endpoint, *args, **kwargs)

    def _is_appended(self, api: Any, json_body: str, endpoint: str | None) -> bool:
        """Append a request to the run that it belongs to; return False if there is none."""
        body = json.loads(json_body)
        run_id = body.get("run_id")
        if run_id is None and endpoint is not None:
            model_id = endpoint.partition("/logged-models/")[2].partition("/")[0]
            model = self._writes.models.get(model_id)
            run_id = None if model is None else model.source_run_id
        if run_id is None:
            return False
        content = {"api": api.__name__, "body": json.dumps(body), "endpoint": endpoint}
        self._writes.run(run_id).append("request", content)
        return True

    def _remember(self, run: Run) -> Run:
        if not is_delivering():  # a run that is being delivered may be older than the known one
            self._known[run.info.run_id] = Run(run.info, run.data, run.inputs, run.outputs)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
            artifacts.use(self._writes, run.info.artifact_uri, run.info.run_id)
        return run


class BackgroundModelRegistryStore(ModelRegistryRestStore):
    """MLflow's model registry store, which registers a version once earlier writes are delivered.

    Args:
        writes: what this process logs to the server.
    """

    def __init__(self, writes: Writes) -> None:
        super().__init__(partial(get_default_host_creds, writes.tracking_uri))
        self._writes = writes

    def _call_endpoint(self, api: Any, json_body: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_delivering():
            if way_of(api.__name__) is Way.AFTER_WRITES:
                self._writes.wait()
            json_body = self._writes.with_model_ids(json_body)
        return super()._call_endpoint(api, json_body, *args, **kwargs)


def _caller(function: tuple[str, str], through: tuple[str, ...] = _CLIENTS) -> Any:
    """Return the local variables of a function of MLflow if it is a caller; None if it is not."""
    for module, frame in _frames(through):
        if (module, frame.f_code.co_name) == function:
            return frame.f_locals
    return None


def _is_autologging() -> bool:
    """Return whether autologging is a caller, and not only the user's own program."""
    return any(module in _AUTOLOGGING for module, _ in _frames(_MLFLOW))


def _frames(through: tuple[str, ...]) -> Iterator[tuple[str, FrameType]]:
    """Yield the callers' modules and frames, up to and including the first one not in `through`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        yield module, frame
        frame = frame.f_back if module.startswith(through) else None


def _point(metric: Metric) -> list[Any]:
    """Return the fields of a point that MLflow stores.

    Raises:
        TypeError, ValueError: a value has the wrong type or size.
    """
    proto = metric.to_proto()  # converts and checks the value as MLflow does
    point = [proto.key, proto.value, proto.timestamp, proto.step]
    if proto.model_id or proto.dataset_name or proto.dataset_digest:
        others = (proto.model_id, proto.dataset_name, proto.dataset_digest)
        point += [text or None for text in others]
    return point


def _check(
    run_id: str, metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
) -> None:
    """Raise the error that the server would return for an invalid name or number.

    The server decides whether long values are cut or rejected, so their length is not checked.
    """
    for param in params:
        param.to_proto()
    for tag in tags:
        tag.to_proto()
    validation._validate_run_id(run_id)
    validation._validate_batch_log_limits(metrics, params, tags)
    validation._validate_param_keys_unique(params)
    validation._validate_batch_log_data(
        metrics, [Param(param.key, "") for param in params], [RunTag(tag.key, "") for tag in tags]
    )
