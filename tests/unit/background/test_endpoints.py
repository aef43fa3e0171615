"""What happens to each request: every request of the installed MLflow is in the table once."""

from __future__ import annotations

from mlflow.store.model_registry import rest_store as model_registry
from mlflow.store.tracking.rest_store import RestStore

from mlflow_iap_callbacks.background.endpoints import _TABLE, WAYS, Way, way_of


def _requests_of_mlflow() -> set[str]:
    methods = [
        *(RestStore._METHOD_TO_INFO, RestStore._V3_METHOD_TO_INFO),
        *(model_registry._METHOD_TO_INFO, getattr(model_registry, "_WEBHOOK_METHOD_TO_INFO", {})),
    ]
    return {message.__name__ for each in methods for message in each}


def test_every_request_of_mlflow_s_stores_is_in_the_table() -> None:
    requests = _requests_of_mlflow()
    assert len(requests) > 100
    assert not requests - WAYS.keys()


def test_no_request_is_in_the_table_twice() -> None:
    assert len(WAYS) == sum(len(names.split()) for names in _TABLE.values())


def test_a_request_of_a_later_version_of_mlflow_waits() -> None:
    assert way_of("GetSomethingNew") is Way.WAITS
