"""Lookup of runs by their run key."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run, ViewType

from ..tags import RUN_KEY_TAG


def find_run(client: MlflowClient, experiment_id: str, key: str) -> Run | None:
    """Return the run whose tag ``_mlflow_iap.run_key`` is ``key``; None if there is none.

    A deleted run is returned only if all are deleted: of duplicate runs, one is kept.
    """
    found = _search(client, experiment_id, key, ViewType.ALL, 100)
    active = [run for run in found if run.info.lifecycle_stage == LifecycleStage.ACTIVE]
    return next(iter([*active, *found]), None)


def find_runs(client: MlflowClient, experiment_id: str, key: str) -> list[Run]:
    """All runs with the key that are not deleted, sorted by their ids."""
    runs = _search(client, experiment_id, key, ViewType.ACTIVE_ONLY, 100)
    return sorted(runs, key=lambda run: str(run.info.run_id))


def _search(
    client: MlflowClient, experiment_id: str, key: str, view: int, most: int
) -> Sequence[Run]:
    query = f"tags.`{RUN_KEY_TAG}` = '{key}'"
    found: Sequence[Run] = client.search_runs([experiment_id], query, view, max_results=most)
    return found
