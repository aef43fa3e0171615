"""The POST endpoints of MLflow that must not be requested repeatedly, and why."""

from __future__ import annotations

import re

from mlflow_iap_callbacks.iap.endpoints import is_repeatable

# Endpoints that create another thing, or run something, each time. {} is a name or an id.
_NOT_REPEATABLE = {
    "/api/2.0/mlflow/runs/create": "another run",
    "/api/2.0/mlflow/runs/create-promptlab-run": "another run",
    "/api/2.0/mlflow/logged-models": "another model",
    "/api/2.0/mlflow/model-versions/create": "another version",
    "/api/2.0/mlflow/traces": "another trace, whose id the server chooses",
    "/api/3.0/mlflow/traces/{}/assessments": "another assessment",
    "/api/3.0/mlflow/datasets/create": "another data set, whose name need not be unique",
    "/api/3.0/mlflow/scorers/register": "another version",
    "/api/3.0/mlflow/issues": "another issue",
    "/api/2.0/mlflow/webhooks": "another webhook",
    "/api/2.0/mlflow/webhooks/{}/test": "another event",
    "/api/3.0/mlflow/prompt-optimization/jobs": "another job",
    "/api/3.0/mlflow/gateway/budgets/create": "another budget",
    "/api/3.0/mlflow/gateway/endpoints/bindings/create": "another binding",
    "/api/3.0/mlflow/gateway/guardrails/create": "another guardrail",
    "/api/3.0/mlflow/mcp-servers/{}/endpoints": "another endpoint",
    "/api/3.0/jobs": "another job",
    "/graphql": "the browser's",
    "/api/2.0/mlflow/gateway-proxy": "calls a model",
    "/gateway/": "calls a model",
    "/api/2.0/mlflow/upload-artifact": "the browser's",
    "/api/2.0/mlflow/ui-telemetry": "the browser's",
    "/api/3.0/mlflow/assistant/": "the browser's",
    "/api/3.0/mlflow/demo/": "the browser's",
    "/api/3.0/mlflow/genai/evaluate/invoke": "another evaluation",
    "/api/3.0/mlflow/issues/invoke": "another job",
    "/api/3.0/mlflow/scorer/invoke": "another evaluation",
}


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
