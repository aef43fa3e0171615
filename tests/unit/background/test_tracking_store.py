"""MLflow's tracking store in the background, with a server in memory and no network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelParameter,
    LoggedModelStatus,
    Metric,
    Param,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.protos.service_pb2 import (
    CreateLoggedModel,
    CreateRun,
    GetRun,
    SearchRuns,
    StartTraceV3,
)
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service import utils

from fake_mlflow import FakeRun
from inline_delivery import InlineDelivery
from mlflow_iap_callbacks import IAPError, IAPUnavailableError
from mlflow_iap_callbacks.background.tracking_store import BackgroundStore
from mlflow_iap_callbacks.background.writes import Writes


class _Server:
    """The server in memory, behind MLflow's own store.

    Attributes:
        requests: names of the requests that MLflow's own store has sent.
        texts: their bodies and the ends of their URLs.
        fails: the error of the next one.
    """

    def __init__(self, delivery: InlineDelivery) -> None:
        self.delivery = delivery
        self.requests: list[str] = []
        self.texts = ""
        self.fails: MlflowException | None = None

    def store(self, *, is_strict: bool = False) -> BackgroundStore:
        uri = self.delivery.server.uri
        return BackgroundStore(Writes(uri, lambda: self.delivery.client, is_strict=is_strict))

    def run(self, run_id: str) -> FakeRun:
        """The run, with what is delivered now."""
        return self.delivery.server.runs[run_id]

    def call(self, api: Any, json_body: Any = None, endpoint: Any = None) -> Any:
        self.requests.append(api.__name__)
        self.texts += f"{json_body} {endpoint} "
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        response, client = api.Response(), self.delivery.client
        if api is CreateRun:
            body = json.loads(json_body)
            run = client.create_run(body["experiment_id"], run_name=body.get("run_name"))
            response.run.MergeFrom(run.to_proto())
        if api is CreateLoggedModel:
            response.model.info.model_id = "m-1"
            response.model.info.source_run_id = json.loads(json_body)["source_run_id"]
        if api is GetRun:
            response.run.MergeFrom(client.get_run(json.loads(json_body)["run_id"]).to_proto())
        return response


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    delivery = InlineDelivery(has_files=True)
    server = _Server(delivery)
    monkeypatch.setattr(RestStore, "_call_endpoint", server.call)
    yield server
    delivery.close()


def _new_run(store: BackgroundStore) -> str:
    return str(store.create_run("0", "user", 1, [], "name").info.run_id)


def test_a_write_sends_nothing_until_it_is_delivered(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    store.log_metric(run_id, Metric("loss", 0.5, 7, 3))
    store.log_param(run_id, Param("rate", "0.1"))
    store.set_tag(run_id, RunTag("team", "x"))
    assert (server.requests, server.run(run_id).points) == (["CreateRun"], {})
    store.flush_async_logging()
    run = server.run(run_id)
    assert (list(run.points), run.params) == ([("loss", 3, 7, 0.5)], {"rate": "0.1"})
    assert run.tags["team"] == "x"


def test_many_writes_are_delivered_in_one_request(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    for step in range(50):
        store.log_batch(run_id, [Metric("loss", step, 7, step)], [Param(f"p{step}", "1")], [])
    store.flush_async_logging()
    assert len(server.run(run_id).points) == 50
    assert server.delivery.server.calls.count("log_batch") == 1


def test_nan_and_infinity_are_sent_as_mlflow_sends_them(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    for name in ("nan", "inf", "-inf"):
        store.log_metric(run_id, Metric(name, float(name), 7, 0))
    store.flush_async_logging()
    assert [str(value) for *_, value in server.run(run_id).points] == ["nan", "inf", "-inf"]


@pytest.mark.parametrize("request_of", [SearchRuns, GetRun])
def test_a_read_is_sent_after_what_was_logged_before(server: _Server, request_of: Any) -> None:
    store = server.store()
    run_id = _new_run(store)
    store.log_metric(run_id, Metric("loss", 0.5, 7, 3))
    store._call_endpoint(request_of, json.dumps({"run_id": run_id}))
    assert server.run(run_id).curve("loss") == [(3, 0.5)]


def test_a_read_without_writes_does_not_begin_a_journal(server: _Server) -> None:
    server.delivery.sender._own = None
    store = server.store()
    _new_run(store)
    store._call_endpoint(SearchRuns, "{}")
    assert server.delivery.sender.outboxes == []


def test_ending_a_run_returns_what_the_server_would_return(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    info = store.update_run_info(run_id, RunStatus.FINISHED, 99, "other")
    assert (info.run_id, info.status, info.end_time, info.run_name) == (
        *(run_id, "FINISHED"),
        *(99, "other"),
    )
    assert server.run(run_id).status == "RUNNING"
    assert store.get_run(run_id).info.status == "FINISHED"
    assert (server.run(run_id).end_time, server.run(run_id).name) == (99, "other")


def test_the_state_of_a_run_changes_in_the_order_of_the_calls(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    for status in (RunStatus.FINISHED, RunStatus.RUNNING, RunStatus.KILLED):
        store.update_run_info(run_id, status, 99, None)
        store.log_metric(run_id, Metric("loss", status, 7, status))
    store.flush_async_logging()
    assert server.run(run_id).status == "KILLED"
    assert len(server.run(run_id).points) == 3


def test_a_run_that_this_process_did_not_create_is_looked_up_only_when_it_ends(
    server: _Server,
) -> None:
    run_id = _new_run(server.store())
    store = server.store()
    store.log_metric(run_id, Metric("loss", 0.5, 7, 3))
    assert server.requests == ["CreateRun"]
    assert store.update_run_info(run_id, RunStatus.FINISHED, 99, None).run_name == "name"
    assert store.update_run_info(run_id, None, None, "renamed").status == "FINISHED"
    assert server.requests == ["CreateRun", "GetRun"]


@pytest.mark.parametrize(
    ("metrics", "params", "tags"),
    [
        ([Metric("a*", 1.0, 1, 1)], [], []),
        ([Metric("a", None, 1, 1)], [], []),  # type: ignore[arg-type]
        ([Metric("a", 1.0, 1, 1 << 70)], [], []),
        ([], [Param("a*", "1")], []),
        ([], [Param("a", "1"), Param("a", "2")], []),
        ([], [], [RunTag("a*", "1")]),
        ([], [Param(f"p{n}", "1") for n in range(101)], []),
    ],
)
def test_what_every_server_rejects_raises_at_once(
    server: _Server, metrics: list[Metric], params: list[Param], tags: list[RunTag]
) -> None:
    store = server.store()
    run_id = _new_run(store)
    with pytest.raises((MlflowException, TypeError, ValueError)):
        store.log_batch(run_id, metrics, params, tags)
    assert server.delivery.sender.waiting == 0


def test_a_data_set_is_an_input_of_the_run(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    dataset = Dataset("numbers", "abc", "local", "{}", schema="{}")
    store.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    store.flush_async_logging()
    (found,) = server.run(run_id).inputs.values()
    assert dict(found.dataset) == dict(dataset)
    assert [dict(tag) for tag in found.tags] == [
        {"key": "mlflow.data.context", "value": "training"}
    ]


def test_other_writes_are_sent_as_they_are(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    sent: list[Any] = []
    server.delivery.client._tracking_client.store._call_endpoint = lambda *given, **_: sent.append(
        given
    )
    store.log_outputs(run_id, [LoggedModelOutput("m-1", 3)])
    store.flush_async_logging()
    ((api, body),) = sent
    assert api.__name__ == "LogOutputs"
    assert json.loads(body) == {"run_id": run_id, "models": [{"model_id": "m-1", "step": 3}]}


def test_what_is_logged_asynchronously_is_on_disk_when_the_call_returns(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    store.log_batch_async(run_id, [Metric("loss", 0.5, 7, 3)], [], []).wait()
    assert server.delivery.sender.waiting


def test_a_rejected_param_is_reported_once_and_kept(
    server: _Server, caplog: pytest.LogCaptureFixture
) -> None:
    store = server.store()
    run_id = _new_run(store)
    store.log_param(run_id, Param("rate", "1"))
    store.log_param(run_id, Param("rate", "2"))
    store.log_metric(run_id, Metric("loss", 0.5, 7, 3))
    store.flush_async_logging()
    assert caplog.text.count("{'rate': '2'}") == 1
    assert [refused.content for refused in server.delivery.sender.outbox.refused()] == [
        {"rate": "2"}
    ]
    assert server.run(run_id).curve("loss") == [(3, 0.5)]


def test_strict_mode_raises_each_rejection_once_at_flush(server: _Server) -> None:
    store = server.store(is_strict=True)
    run_id = _new_run(store)
    store.log_param(run_id, Param("rate", "1"))
    store.log_param(run_id, Param("rate", "2"))
    with pytest.raises(IAPError, match="rate"):
        store.flush_async_logging()
    store.flush_async_logging()


def test_a_run_that_was_deleted_and_restored_accepts_writes_again(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    server.run(run_id).is_deleted = True
    store.log_metric(run_id, Metric("lost", 0.5, 7, 3))
    store.flush_async_logging()
    server.run(run_id).is_deleted = False
    store.restore_run(run_id)
    store.log_metric(run_id, Metric("loss", 0.5, 7, 3))
    store.flush_async_logging()
    assert list(server.run(run_id).points) == [("loss", 3, 7, 0.5)]


def test_a_read_is_sent_with_a_warning_if_the_server_is_away(
    server: _Server, caplog: pytest.LogCaptureFixture
) -> None:
    store = server.store()
    run_id = _new_run(store)
    server.delivery.server.is_away = True
    store.log_metric(run_id, Metric("loss", 0.5, 7, 3))
    store._call_endpoint(SearchRuns, "{}")
    assert "may lack 1 record not yet" in caplog.text
    server.delivery.server.is_away = False
    store.flush_async_logging()
    assert server.run(run_id).curve("loss") == [(3, 0.5)]


def test_a_thread_that_delivers_sends_at_once(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    server.delivery.client.log_batch = store.log_batch  # type: ignore[assignment, method-assign]
    store.log_metric(run_id, Metric("loss", 0.5, 7, 3))
    store.flush_async_logging()
    assert server.requests == ["CreateRun", "LogBatch"]


def _of_mlflow(module: str, source: str) -> Any:
    """A function as if MLflow's module had it."""
    names: dict[str, Any] = {"__name__": module}
    exec(source, names)
    return names


def test_mlflow_shows_the_link_of_a_run_without_a_request(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    store.log_metric(run_id, Metric("loss", 0.5, 7, 3))
    shown = _of_mlflow(
        "mlflow.tracking._tracking_service.client",
        "def _log_url(store, id): return store.get_run(id)",
    )["_log_url"](store, run_id)
    assert (shown.info.run_name, server.requests) == ("name", ["CreateRun"])


def test_the_metrics_of_a_model_are_logged_again_after_those_of_its_run(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    for step in range(3):
        store.log_metric(run_id, Metric("loss", step / 2, 7, step))
    log = _of_mlflow(
        "mlflow.models.model",
        "def log_model_metrics_for_step(client, model_id, run_id, step):\n"
        "    return list(client.get_run(run_id).data.metrics)",
    )["log_model_metrics_for_step"]
    assert log(store, "m-1", run_id, 2) == []
    assert server.requests == ["CreateRun"]
    store.flush_async_logging()
    assert server.run(run_id).curve("loss") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert [
        (metric.model_id, metric.step, metric.value)
        for metric in server.delivery.server.model_metrics["m-1"]
    ] == [("m-1", 2, 1.0)]


def test_any_other_function_gets_the_run_from_the_server(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    store.log_metric(run_id, Metric("loss", 0.5, 7, 3))
    ask = _of_mlflow("mlflow.models.model", "def log(store, id): return store.get_run(id)")["log"]
    assert ask(store, run_id).data.metrics == {"loss": 0.5}
    assert server.requests == ["CreateRun", "GetRun"]


# --- models ------------------------------------------------------------------------------------

_AUTOLOGGING = "mlflow.utils.autologging_utils.safety"
_TRANSFORMERS = "transformers.integrations.integration_utils"


_CREATE = "def create(store, id): return store.create_logged_model('0', 'model', id, [])"


def _autologged(store: BackgroundStore, run_id: str) -> LoggedModel:
    model = _of_mlflow(_AUTOLOGGING, _CREATE)["create"](store, run_id)
    assert isinstance(model, LoggedModel)
    return model


def _only_model(server: _Server) -> LoggedModel:
    (model,) = server.delivery.server.models.values()
    return model


def test_an_autologged_model_is_created_later_with_an_id_that_mlflow_chooses(
    server: _Server, tmp_path: Path
) -> None:
    store = server.store()
    run_id = _new_run(store)
    model = _autologged(store, run_id)
    (tmp_path / "MLmodel").write_text(f"model_id: {model.model_id}\n")
    utils._artifact_repos_cache[model.model_id].log_artifacts(str(tmp_path))
    store.log_batch(run_id, [Metric("loss", 0.5, 7, 3, model_id=model.model_id)], [], [])
    store.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    assert (server.requests, server.delivery.server.models) == (["CreateRun"], {})
    sent: list[Any] = []
    server.delivery.client._tracking_client.store._call_endpoint = lambda *given, **named: (
        sent.append((given, named))
    )
    store.flush_async_logging()
    made = _only_model(server)
    assert server.delivery.server.model_files[made.model_id] == {
        "MLmodel": f"model_id: {made.model_id}\n".encode()
    }
    assert [each.key for each in server.delivery.server.model_metrics[made.model_id]] == ["loss"]
    (((_, body), named),) = sent
    assert json.loads(body)["model_id"] == made.model_id
    assert named["endpoint"].endswith(f"/{made.model_id}")


def test_a_model_that_the_callback_of_transformers_logs_is_created_later(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    log = _of_mlflow("mlflow.models.model", _CREATE)["create"]
    save = _of_mlflow(_TRANSFORMERS, "def save(log, store, id): return log(store, id)")["save"]
    model = save(log, store, run_id)
    assert server.requests == ["CreateRun"]
    store.flush_async_logging()
    assert _only_model(server).tags == {"mlflow_iap.model_key": model.model_id}


def test_a_request_about_an_autologged_model_is_sent_with_the_id_that_mlflow_chose(
    server: _Server,
) -> None:
    store = server.store()
    model = _autologged(store, _new_run(store))
    store.delete_logged_model(model.model_id)
    store._call_endpoint(StartTraceV3, json.dumps({"of": model.model_id}))
    assert model.model_id not in server.texts
    assert server.texts.count(_only_model(server).model_id) == 3  # with the end of a URL


def test_mlflow_chooses_the_id_of_a_model_that_a_program_logs(server: _Server) -> None:
    store = server.store()
    model = store.create_logged_model("0", "model", _new_run(store))
    assert model.model_id == "m-1"
    assert server.requests == ["CreateRun", "CreateLoggedModel"]


def test_a_model_that_a_program_logs_is_created_later_if_the_server_is_away(
    server: _Server, caplog: pytest.LogCaptureFixture
) -> None:
    store = server.store()
    run_id = _new_run(store)
    server.fails = IAPUnavailableError("The server is away.")
    model = store.create_logged_model("0", "model", run_id, [])
    assert f"{model.model_id} in this process" in caplog.text
    store.flush_async_logging()
    assert _only_model(server).tags == {"mlflow_iap.model_key": model.model_id}


def test_a_model_that_mlflow_rejects_raises_at_once(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    server.fails = MlflowException("The name is invalid.", INVALID_PARAMETER_VALUE)
    with pytest.raises(MlflowException, match="name is invalid"):
        store.create_logged_model("0", "model", run_id, [])
    assert server.delivery.sender.waiting == 0


def test_a_model_gets_the_params_that_its_run_had_when_it_was_logged(server: _Server) -> None:
    store = server.store()
    run_id = _new_run(store)
    store.log_param(run_id, Param("rate", "1"))
    log = _of_mlflow(
        "mlflow.models.model",
        "def log(store, id, params):\n"
        "    assert not store.get_run(id).data.params\n"
        "    return store.create_logged_model('0', 'model', id, [], params)",
    )["log"]
    call = _of_mlflow(_AUTOLOGGING, "def call(log, *given): return log(*given)")["call"]
    call(log, store, run_id, [LoggedModelParameter("own", "x")])
    store.log_param(run_id, Param("later", "1"))
    assert server.requests == ["CreateRun"]
    store.flush_async_logging()
    assert _only_model(server).params == {"rate": "1", "own": "x"}


def test_a_model_that_a_program_logs_while_the_server_is_away_gets_the_params_of_its_run_later(
    server: _Server,
) -> None:
    store = server.store()
    run_id = _new_run(store)
    store.log_param(run_id, Param("rate", "1"))
    server.delivery.server.is_away = True
    log = _of_mlflow(
        "mlflow.models.model",
        "def log(store, id):\n"
        "    params = store.get_run(id).data.params\n"
        "    return store.create_logged_model('0', 'model', id, [], list(params))",
    )["log"]
    model = log(store, run_id)
    assert server.requests == ["CreateRun"]
    assert model.params == {}
    server.delivery.server.is_away = False
    store.flush_async_logging()
    assert _only_model(server).params == {"rate": "1"}
