"""What happens to each request: every request of the installed MLflow is in the table once."""

from __future__ import annotations

from mlflow.store.model_registry import rest_store as model_registry
from mlflow.store.tracking.rest_store import RestStore

from mlflow_iap_callbacks.background.endpoints import _TABLE, WAYS, Way, way_of


def _requests_of_mlflow() -> set[str]:
    # Older versions of MLflow have fewer of these tables.
    return {
        message.__name__
        for owner in (RestStore, model_registry)
        for name in dir(owner)
        if name.endswith("METHOD_TO_INFO")
        for message in getattr(owner, name)
    }


def test_every_request_of_mlflows_stores_is_in_the_table() -> None:
    requests = _requests_of_mlflow()
    assert len(requests) > 90
    assert not requests - WAYS.keys()


def test_no_request_is_in_the_table_twice() -> None:
    assert len(WAYS) == sum(len(names.split()) for names in _TABLE.values())


def test_a_request_of_a_later_version_of_mlflow_waits() -> None:
    assert way_of("GetSomethingNew") is Way.AFTER_WRITES
