"""Sends requests of MLflow's REST API unchanged; one that is repeated takes effect only once."""

from __future__ import annotations

import json
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos import service_pb2

from ..iap.unwrapping import unwrapped_errors


def send_request(client: MlflowClient, api: str, body: str, endpoint: str | None) -> None:
    """Send a request. Ignore its error if an earlier attempt, whose response was lost, succeeded.

    Args:
        client: any MlflowClient.
        api: name of the request in MLflow's protobuf.
        body: its JSON.
        endpoint: its path; None if all requests with this name have the same one.
    """
    try:
        with unwrapped_errors():
            message = getattr(service_pb2, api)
            client._tracking_client.store._call_endpoint(message, body, endpoint=endpoint)
    except MlflowException as error:
        # MLflow's database rejects an entity that it already has.
        if "IntegrityError" not in str(error) or not _was_carried_out(client, api, body):
            raise


def _was_carried_out(client: MlflowClient, api: str, body: str) -> bool:
    content: dict[str, Any] = json.loads(body)
    if api == "LogOutputs":
        outputs = client.get_run(content["run_id"]).outputs
        found = {output.model_id for output in outputs.model_outputs} if outputs else set()
        return found >= {model["model_id"] for model in content["models"]}
    if api == "LogLoggedModelParamsRequest":
        params = client.get_logged_model(content["model_id"]).params
        wanted = {param["key"]: param["value"] for param in content["params"]}
        return dict(params or {}).items() >= wanted.items()
    return False
