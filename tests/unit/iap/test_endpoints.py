"""Which requests may be repeated: each POST endpoint of the installed MLflow is in a table."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import mlflow.protos
import pytest
import requests
from mlflow.protos import databricks_pb2

from endpoint_table import LOOKED_UP, UNKNOWN, is_classified
from mlflow_iap_callbacks.iap.endpoints import is_repeatable
from mlflow_iap_callbacks.iap.keyed_creation import creation_in
from mlflow_iap_callbacks.iap.matched_creation import matched_creation_in

# Endpoints that MLflow's own server does not have.
_OF_OTHER_SERVERS = ("databricks_", "unity_catalog_")


def _in_protobuf() -> Iterator[str]:
    for module in pkgutil.iter_modules(mlflow.protos.__path__):
        if not module.name.endswith("_pb2") or module.name.startswith(_OF_OTHER_SERVERS):
            continue
        services = importlib.import_module(f"mlflow.protos.{module.name}").DESCRIPTOR
        for service in services.services_by_name.values():
            for method in service.methods:
                for endpoint in method.GetOptions().Extensions[databricks_pb2.rpc].endpoints:
                    if endpoint.method == "POST":
                        path = endpoint.path.lstrip("/")
                        yield f"/api/{endpoint.since.major}.0/{path}"


def test_every_post_endpoint_of_mlflow_s_protobuf_is_in_one_table() -> None:
    paths = set(_in_protobuf())
    assert len(paths) > 40
    assert not [path for path in sorted(paths) if not is_classified(path)]


@pytest.mark.parametrize(
    "path",
    [
        "/api/2.0/mlflow/runs/log-batch",
        "/prefix/api/2.0/mlflow/experiments/create",
        "/api/2.0/mlflow/logged-models/m-1/params",
        "/api/2.0/mlflow-artifacts/mpu/create/0/run/artifacts/model",
        "/api/3.0/mlflow/traces",
        "/v1/traces",
        "/api/3.0/mlflow/mcp-servers/io.example/a/versions",
        "/api/3.0/mlflow/mcp-servers/io.example%2Fa/versions/1.0/tags",
    ],
)
def test_a_path_may_have_a_prefix_and_ids(path: str) -> None:
    assert is_repeatable(path)


@pytest.mark.parametrize(
    "path",
    [
        "/api/2.0/mlflow/runs/create",
        "/api/2.0/mlflow/traces",
        "/api/2.0/mlflow/model-versions/create",
        "/api/2.0/mlflow/runs/log-batch/create",
        "/api/2.0/mlflow/new/search-and-create",
        "/api/3.0/mlflow/datasets/create",
        "/search",
        "",
    ],
)
def test_an_unknown_path_is_not_repeatable(path: str) -> None:
    assert not is_repeatable(path)


# Fields without which there is nothing to look for.
_FIELDS = dict.fromkeys(["name", "endpoint_id", "experiment_id", "job_name", "params"], "1")


def _is_looked_up(path: str, *, is_unique: bool = False) -> bool:
    url = f"https://mlflow.example{path.replace('{}', 'a')}"
    request = requests.Request("POST", url, json=_FIELDS).prepare()
    found = creation_in(request) or matched_creation_in(request, is_unique=is_unique)
    return found is not None


def test_what_cannot_be_repeated_is_looked_up_or_is_unknown_for_a_reason() -> None:
    assert [path for path in LOOKED_UP if not _is_looked_up(path)] == []
    assert [path for path in UNKNOWN if _is_looked_up(path)] == []
    assert all(UNKNOWN.values())


@pytest.mark.parametrize(
    "path",
    [
        "gateway/endpoints/create",
        "gateway/endpoints/models/attach",
        "gateway/guardrails/add-to-endpoint",
        "gateway/model-definitions/create",
        "gateway/secrets/create",
        "label-schemas/create",
        "mcp-servers",
        "mcp-servers/io.example/a/versions",
        "review-queues/create",
    ],
)
def test_what_can_exist_only_once_is_repeated_and_then_looked_up(path: str) -> None:
    path = f"/api/3.0/mlflow/{path}"
    assert is_repeatable(path)
    assert _is_looked_up(path, is_unique=True)
    assert not _is_looked_up(path)
