"""What MLflow's pages get in place of closed routes."""

from __future__ import annotations

import pytest

from mlflow_iap_callbacks.server.routes import route_of
from mlflow_iap_callbacks.server.stand_ins import _ANSWERS, stand_in_for


@pytest.mark.parametrize(
    "prefix", ["/api/2.0/mlflow", "/ajax-api/3.0/mlflow", "//ajax-api/3.0//mlflow"]
)
def test_a_list_of_what_is_off_is_empty(prefix: str) -> None:
    assert stand_in_for("GET", f"{prefix}/gateway-proxy") == {"endpoints": []}
    assert stand_in_for("get", f"{prefix}/webhooks/") == {}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/ajax-api/2.0/mlflow/gateway-proxy"),
        ("POST", "/api/2.0/mlflow/webhooks"),
        ("PUT", "/ajax-api/3.0/mlflow/assistant/config"),
        ("POST", "/api/3.0/mlflow/mcp-servers"),
        ("POST", "/ajax-api/3.0/jobs"),
        ("POST", "/ajax-api/3.0/jobs/search"),
        ("GET", "/api/2.0/mlflow/webhooks/1"),
        ("GET", "/gateway-proxy"),
    ],
)
def test_nothing_else_is_answered(method: str, path: str) -> None:
    assert stand_in_for(method, path) is None


def test_a_stand_in_is_for_a_route_that_is_closed_or_whose_feature_is_off() -> None:
    found = {call: route_of(method, f"/ajax-api/3.0/mlflow/{call}") for method, call in _ANSWERS}
    served = {call: route.needs for call, route in found.items() if route is not None}
    assert served == {"users/current": "permissions", "webhooks": "webhooks"}
