"""Google Cloud on this machine: token endpoints, Identity-Aware Proxy and faults on loopback.

For tests and for trying things out without a Google account. `LocalCloud` puts an application
behind a stand-in for Identity-Aware Proxy that answers word for word as the real one does;
`MlflowServer` runs a real MLflow server to put there.
"""

from .cloud import LocalCloud
from .mlflow_server import MlflowServer

__all__ = ["LocalCloud", "MlflowServer"]
