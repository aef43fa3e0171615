"""The same program with and without background logging: MLflow must store the same."""

from __future__ import annotations

from mlflow_iap_callbacks import IAPMlflowClient
from run_walker import differences, walk
from scripts import Start

IMPORTS = """
import multiprocessing, os, subprocess, sys, tempfile, threading
from pathlib import Path
import mlflow, numpy as np, pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

NAME = sys.argv[1]
if sys.argv[2] == "background":
    from mlflow_iap_callbacks import log_in_background
    log_in_background(strict=True)
mlflow.set_experiment(NAME)
X = np.random.default_rng(0).random((100, 4))
Y = (X[:, 0] > 0.5).astype(int)
"""


def assert_equal(start: Start, name: str, program: str, **variables: str) -> None:
    """Run a program in two experiments at the same time, and compare what MLflow stores."""
    scripts = {
        each: start(program, f"{name}-{each}", each, PYTHONHASHSEED="0", **variables)
        for each in ("background", "plain")
    }
    for script in scripts.values():
        assert script.end(240.0) == 0, script.err
    assert_same(*(f"{name}-{each}" for each in scripts))


def assert_same(one: str, other: str) -> None:
    """Compare what MLflow stores of two experiments."""
    first, second = (walk(IAPMlflowClient(), name) for name in (one, other))
    assert first
    found = differences(first, second)
    assert not found, "\n".join(found)
