"""The environment variables with which programs reach a local cloud, and nothing else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cloud import LocalCloud

# Settings for another server, which would be wrong for the local one.
FOREIGN_VARIABLES = (
    *("MLFLOW_IAP_CLIENT_ID", "MLFLOW_OAUTH2_CLIENT_ID", "MLFLOW_IAP_IMPERSONATE"),
    *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"),
)


def client_environment(cloud: LocalCloud) -> dict[str, str]:
    """Return the variables of a client of a cloud, even on a machine with a proxy."""
    return {**cloud.environment(), **_around_proxies()}


def _around_proxies() -> dict[str, str]:
    """Return variables that make requests to this machine bypass a proxy; none without a proxy."""
    if not any(name.lower() in ("http_proxy", "all_proxy") for name in os.environ):
        return {}
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    hosts = ",".join(filter(None, [others, "127.0.0.1", "localhost"]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}
