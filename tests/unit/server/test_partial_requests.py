"""Requests of which MLflow can read only a part."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.utils.proto_json_utils import parse_dict

from mlflow_iap_callbacks.server.partial_requests import refuse_partial_requests

pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")

_TAG = {"key": "a", "value": {"b": 1}}  # not a text


@pytest.fixture(autouse=True)
def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.server import handlers

    monkeypatch.setattr(handlers, "parse_dict", parse_dict)
    refuse_partial_requests()


def read(name: str, **request: Any) -> Any:
    """Return a message as MLflow reads it from a request."""
    from mlflow.server import app, handlers

    kinds = {
        getattr(kind, "__name__", ""): kind for _, kind, _ in handlers.get_endpoints(lambda k: k)
    }
    with app.test_request_context(**request):
        return handlers._get_request_message(kinds[name]())


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("CreateRun", {"tags": [_TAG], "user_id": "ada@example.com"}),
        ("CreateRun", {"start_time": "soon", "user_id": "ada@example.com"}),
        ("CreateExperiment", {"tags": [_TAG, {"key": "mlflow.user", "value": "ada@example.com"}]}),
        ("SearchEvaluationDatasets", {"order_by": [{}], "experiment_ids": ["1"]}),
        ("SearchRuns", {"run_view_type": {}, "experiment_ids": ["1"]}),
    ],
)
def test_a_field_of_another_type_is_an_error_instead_of_the_end_of_what_is_read(
    name: str, body: dict[str, Any]
) -> None:
    with pytest.raises(MlflowException, match="A field of this request cannot be read: ") as error:
        read(name, json=body, method="POST")
    assert error.value.get_http_status_code() == 400


def test_the_fields_of_a_query_are_read_to_the_end_too() -> None:
    query = {"max_results": "all", "experiment_ids": "1"}
    with pytest.raises(MlflowException, match="max_results"):
        read("SearchEvaluationDatasets", query_string=query)


def test_fields_that_this_version_of_mlflow_does_not_know_are_ignored_as_before() -> None:
    body = {"of_a_later_version": [{}], "experiment_id": "1", "start_time": "5"}
    found = read("CreateRun", json=body, method="POST")
    assert (found.experiment_id, found.start_time) == ("1", 5)
