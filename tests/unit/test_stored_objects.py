"""Objects that version 0.1.0 pickled, before its modules moved into folders."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from mlflow_iap_callbacks import (
    IAPCredentials,
    IAPLightGBMCallback,
    IAPMLflowCallback,
    IAPMlflowClient,
)
from mlflow_iap_callbacks.delivery.run_writer import RunWriter
from mlflow_iap_callbacks.iap.auth import IAPAuth
from mlflow_iap_callbacks.iap.retry_policy import RetryPolicy

_STORED = Path(__file__).parents[1] / "data" / "0.1.0" / "pickles.json"
_URI = "https://mlflow.example"


@pytest.fixture
def stored() -> dict[str, Any]:
    texts = json.loads(_STORED.read_text())
    return {name: pickle.loads(base64.b64decode(text)) for name, text in texts.items()}


def test_a_stored_client_and_its_credentials_are_unchanged(stored: dict[str, Any]) -> None:
    client, credentials, auth = stored["client"], stored["credentials"], stored["auth"]
    assert (type(client), client.tracking_uri) == (IAPMlflowClient, _URI)
    assert client._auth.retry == RetryPolicy(max_attempts=3, deadline=10.0)
    same = IAPCredentials(
        "123.apps.googleusercontent.com", impersonate="sweeper@project.iam.gserviceaccount.com"
    )
    assert credentials.is_like(same)
    assert (type(auth), auth.origin, auth.retry) == (IAPAuth, _URI, client._auth.retry)


def test_a_stored_handle_logs_to_its_run(stored: dict[str, Any]) -> None:
    run = stored["run"]
    assert (type(run), run.key, run.client.tracking_uri) == (RunWriter, "c" * 32, _URI)
    run.log_metrics({"loss": 1.0})
    queued = run._queued()
    queued.outbox.collect()  # the sender's thread may have done so already
    (record,) = queued.outbox.read(queued, queued.outbox.last_seq)
    assert (queued.key, queued.experiment, record.kind) == ("c" * 32, "name:experiment", "metrics")


def test_stored_callbacks_keep_their_settings(stored: dict[str, Any]) -> None:
    optuna, lightgbm = stored["optuna_callback"], stored["lightgbm_callback"]
    again = IAPMLflowCallback(
        metric_name=["loss", "time"],
        mlflow_kwargs={"experiment_id": "7"},
        tags={"team": "a"},
        client=stored["client"],
    )
    assert _settings(optuna) == _settings(again)
    trees = IAPLightGBMCallback(
        experiment_name="trees",
        tags={"team": "a"},
        client=stored["client"],
        max_points=50,
        log_trees=2,
    )
    assert _settings(lightgbm) == _settings(trees)
    assert stored["lightgbm_callback_of_a_run"].run.key == "c" * 32


def _settings(callback: Any) -> dict[str, Any]:
    state = callback.__getstate__()
    return {name: value for name, value in state.items() if name not in ("_client", "_id")}
