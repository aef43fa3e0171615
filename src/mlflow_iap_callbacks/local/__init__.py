"""Google Cloud on this machine: Identity-Aware Proxy, token endpoints and faults on loopback.

For tests, and for trying the package without a Google account. `LocalCloud` puts an application
behind an emulated Identity-Aware Proxy that responds word for word as the real one does;
`MlflowServer` runs a real MLflow server that can be that application.
"""

from .cloud import LocalCloud
from .mlflow_server import MlflowServer

__all__ = ["LocalCloud", "MlflowServer"]
