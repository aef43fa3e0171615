"""The POST endpoints of MLflow that must not simply be requested repeatedly."""

from __future__ import annotations

import re

from mlflow_iap_callbacks.iap.endpoints import is_repeatable

# Endpoints that create another thing each time. What a lost request created is looked up.
# {} is a name or an id.
LOOKED_UP = {
    "/api/2.0/mlflow/runs/create": "by a key",
    "/api/2.0/mlflow/logged-models": "by a key",
    "/api/2.0/mlflow/model-versions/create": "by name and time",
    "/api/3.0/mlflow/traces/{}/assessments": "by content, with the client's time",
    "/api/3.0/mlflow/datasets/create": "by name and time",
    "/api/2.0/mlflow/webhooks": "by content and time",
    "/api/3.0/mlflow/scorers/register": "by content and time",
    "/api/3.0/mlflow/issues": "by content and time",
    "/api/3.0/mlflow/prompt-optimization/jobs": "by prompt and time",
    "/api/3.0/jobs": "by name, params and time",
    "/api/3.0/mlflow/gateway/budgets/create": "by content and time",
    "/api/3.0/mlflow/gateway/guardrails/create": "by name and time",
    "/api/3.0/mlflow/gateway/endpoints/bindings/create": "by resource and time",
    "/api/3.0/mlflow/mcp-servers/{}/endpoints": "by content and time",
}
# Endpoints after whose lost response the outcome stays unknown, and why.
UNKNOWN = {
    "/api/2.0/mlflow/runs/create-promptlab-run": "the browser's",
    "/api/2.0/mlflow/traces": "another trace, whose id the server chooses (before MLflow 3)",
    "/api/2.0/mlflow/webhooks/{}/test": "another event, which leaves nothing behind",
    "/graphql": "the browser's",
    "/api/2.0/mlflow/gateway-proxy": "calls a model, which costs money",
    "/gateway/": "calls a model, which costs money",
    "/api/2.0/mlflow/upload-artifact": "the browser's",
    "/api/2.0/mlflow/ui-telemetry": "the browser's",
    "/api/3.0/mlflow/assistant/": "the browser's",
    "/api/3.0/mlflow/demo/": "the browser's",
    "/api/3.0/mlflow/genai/evaluate/invoke": "the browser's; calls a model",
    "/api/3.0/mlflow/issues/invoke": "the browser's; calls a model",
    "/api/3.0/mlflow/scorer/invoke": "the browser's; calls a model",
}
_NOT_REPEATABLE = {**LOOKED_UP, **UNKNOWN}


def is_classified(path: str) -> bool:
    """Whether a path is in exactly one of the tables."""
    path = re.sub(r"[{<][^}>]*[}>]", "{}", path.replace("/ajax-api/", "/api/")).rstrip("/")
    path = path if path.startswith("/") else f"/{path}"
    is_other = any(
        path == other or (other.endswith("/") and path.startswith(other))
        for each in _NOT_REPEATABLE
        for other in (each, each.replace("/2.0/", "/3.0/"))
        if (path, other) != ("/api/3.0/mlflow/traces", other)
    )
    return is_other != is_repeatable(path)
