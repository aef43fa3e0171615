"""The ids of experiments, which are given by id or name and created if they are missing."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ..tags import EXPERIMENT_KIND_TAG, TRAINING_KIND


class Experiments:
    """Looks each experiment up once.

    Args:
        client: returns the client of the server, which may change.
    """

    def __init__(self, client: Callable[[], MlflowClient]) -> None:
        self._client = client
        self._ids: dict[str, str] = {}
        self._lock = threading.Lock()

    def id_of(self, experiment: str) -> str:
        """Return the id of ``id:ID`` or ``name:NAME``; create a named one if it is missing."""
        kind, _, text = experiment.partition(":")
        if kind == "id":
            return text
        with self._lock:
            if experiment not in self._ids:
                self._ids[experiment] = self._find(text) or self._create(text)
            return self._ids[experiment]

    def is_current(self, experiment: str, experiment_id: str) -> bool:
        """Return whether the name still has this id: an experiment may be created anew."""
        kind, _, name = experiment.partition(":")
        return kind == "id" or self._find(name) == experiment_id

    def forget(self, experiment: str) -> None:
        """Look the experiment up again."""
        with self._lock:
            self._ids.pop(experiment, None)

    def _find(self, name: str) -> str | None:
        found = self._client().get_experiment_by_name(name)
        return None if found is None else str(found.experiment_id)

    def _create(self, name: str) -> str:
        try:
            tags = {EXPERIMENT_KIND_TAG: TRAINING_KIND}
            return str(self._client().create_experiment(name, tags=tags))
        except MlflowException:  # another process was first, or the response was lost
            found = self._find(name)
            if found is None:
                raise
            return found
