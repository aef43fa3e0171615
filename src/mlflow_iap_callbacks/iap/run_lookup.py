"""Runs looked up by the key that this package gave them."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from ..tags import RUN_KEY_TAG


def find_run(client: MlflowClient, experiment_id: str, key: str) -> Run | None:
    """The run that carries ``key`` as its ``mlflow_iap.run_key``, if the server has it."""
    runs = _search(client, experiment_id, key, ViewType.ALL, 1)
    return runs[0] if runs else None


def find_runs(client: MlflowClient, experiment_id: str, key: str) -> list[Run]:
    """All that carry the key and are not deleted, by their ids."""
    runs = _search(client, experiment_id, key, ViewType.ACTIVE_ONLY, 100)
    return sorted(runs, key=lambda run: str(run.info.run_id))


def _search(
    client: MlflowClient, experiment_id: str, key: str, view: int, most: int
) -> Sequence[Run]:
    query = f"tags.`{RUN_KEY_TAG}` = '{key}'"
    found: Sequence[Run] = client.search_runs([experiment_id], query, view, max_results=most)
    return found
