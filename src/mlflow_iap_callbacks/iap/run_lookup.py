"""Lookup of runs by their run key."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run, ViewType

from ..tags import AGREED_TAG, RUN_KEY_TAG

# Time zones differ by multiples of this.
_QUARTER_OF_AN_HOUR = 900_000  # milliseconds


def find_run(
    client: MlflowClient,
    experiment_id: str,
    key: str,
    *,
    began: int | None = None,
    is_prefix: bool = False,
) -> Run | None:
    """Return the run whose tag ``mlflow_iap.run_key`` is ``key``; None if there is none.

    A deleted run is returned only if all are deleted: of duplicate runs, one is kept. The run that
    all processes agreed on takes precedence.

    Args:
        client: a client of the server.
        experiment_id: id of the run's experiment.
        key: the key.
        began: start of the run, in milliseconds since 1970. Default: any.
        is_prefix: whether the key only begins with ``key``.
    """
    found = _search(client, experiment_id, key, ViewType.ALL, 100, is_prefix=is_prefix)
    if began is not None:
        found = [run for run in found if has_begun_at(run, began)]
    active = [run for run in found if run.info.lifecycle_stage == LifecycleStage.ACTIVE]
    return next(iter([*filter(is_agreed, active), *active, *found]), None)


def find_runs(
    client: MlflowClient, experiment_id: str, key: str, view: int = ViewType.ACTIVE_ONLY
) -> list[Run]:
    """All runs with the key, by default those that are not deleted.

    The runs that processes agreed on come first; otherwise they are sorted by their ids.
    """
    runs = _search(client, experiment_id, key, view, 100)
    return sorted(runs, key=lambda run: (not is_agreed(run), str(run.info.run_id)))


def is_agreed(run: Run) -> bool:
    """Whether processes have agreed on a shared run."""
    return AGREED_TAG in run.data.tags


def has_begun_at(run: Run, began: int) -> bool:
    """Whether a run began then (milliseconds since 1970), give or take a time zone."""
    # Conversion from a local time may be off by one.
    return int(run.info.start_time - began + 1) % _QUARTER_OF_AN_HOUR <= 2


def _search(
    client: MlflowClient,
    experiment_id: str,
    key: str,
    view: int,
    most: int,
    *,
    is_prefix: bool = False,
) -> Sequence[Run]:
    wanted = f"LIKE '{key}%'" if is_prefix else f"= '{key}'"
    query = f"tags.`{RUN_KEY_TAG}` {wanted}"
    found: Sequence[Run] = client.search_runs([experiment_id], query, view, max_results=most)
    return found
