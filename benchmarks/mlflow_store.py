"""The gate's application with MLflow's own store of metrics, to compare it."""

from __future__ import annotations

from mlflow_iap_callbacks.server.app import create_app
from mlflow_iap_callbacks.server.batch_store import BatchedMetrics

__all__ = ["create_app"]

del BatchedMetrics.log_batch
