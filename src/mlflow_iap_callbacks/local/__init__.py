"""Google Cloud on this machine: Identity-Aware Proxy, token endpoints and faults on loopback.

For tests, and for trying the package without a Google account. `LocalCloud` puts an application
behind an emulated Identity-Aware Proxy that responds word for word as the real one does;
`MlflowServer` runs a real MLflow server that can be that application.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cloud import LocalCloud
    from .mlflow_server import MlflowServer

__all__ = ["LocalCloud", "MlflowServer"]

_HOMES = {"LocalCloud": "cloud", "MlflowServer": "mlflow_server"}


# pytest imports this package in every project, for its fixtures.
def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
