"""The path of a request as MLflow's routes name it."""

from __future__ import annotations

from starlette.types import Scope


def routed_path(scope: Scope, static_prefix: str) -> str:
    """Return a request's path without the prefixes that the operator put before it."""
    path: str = scope["path"]
    for prefix in (scope.get("root_path", ""), static_prefix):
        if prefix and path.startswith(prefix.rstrip("/") + "/"):
            path = path[len(prefix.rstrip("/")) :]
    return path
