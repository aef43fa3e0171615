"""Checks, in an environment with only the built wheel, that imports work and are cheap."""

import importlib.metadata
import sys

import mlflow_iap_callbacks

heavy = {"lightgbm", "mlflow", "optuna"} & set(sys.modules)
assert not heavy, f"importing the package imports {heavy}"

for name in mlflow_iap_callbacks.__all__:
    assert getattr(mlflow_iap_callbacks, name).__name__ == name

assert not {"lightgbm", "optuna"} & set(sys.modules), "the callbacks import their framework"

from mlflow.tracking.request_auth.registry import fetch_auth  # noqa: E402

assert fetch_auth("iap") is not None
print("ok:", mlflow_iap_callbacks.__file__, importlib.metadata.version("mlflow-iap-callbacks"))
