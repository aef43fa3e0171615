"""Requests of MLflow's REST API that are sent again after their response was lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from fake_mlflow import FakeClient, FakeMlflow
from mlflow_iap_callbacks.delivery.mlflow_request import send_request


class _Client(FakeClient):
    """A client whose server rejects each request like a database that has the entity."""

    def _call_endpoint(self, api: Any, body: str, endpoint: str | None = None) -> None:
        raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed", error_code=4)


def test_an_output_that_an_earlier_try_logged_is_there_once() -> None:
    server = FakeMlflow()
    client = FakeClient(server)
    run_id = client.create_run("0").info.run_id
    body = json.dumps({"run_id": run_id, "models": [{"model_id": "m-1", "step": 3}]})
    for _ in range(2):
        send_request(client, "LogOutputs", body, None)
    assert [output.model_id for output in server.runs[run_id].outputs] == ["m-1"]


@pytest.mark.parametrize(("value", "is_rejected"), [("1", False), ("2", True)])
def test_params_of_a_model_are_rejected_only_if_their_values_differ(
    value: str, is_rejected: bool
) -> None:
    client = _Client(FakeMlflow())
    model = client.create_logged_model("0", "model", params={"rate": "1", "more": "x"})
    params = [{"key": "rate", "value": value}]
    body = json.dumps({"model_id": model.model_id, "params": params})
    given = (client, "LogLoggedModelParamsRequest", body, f"/{model.model_id}/params")
    if is_rejected:
        with pytest.raises(MlflowException, match="IntegrityError"):
            send_request(*given)
    else:
        send_request(*given)


def test_any_other_request_is_rejected() -> None:
    with pytest.raises(MlflowException, match="IntegrityError"):
        send_request(_Client(FakeMlflow()), "LogModel", "{}", None)
