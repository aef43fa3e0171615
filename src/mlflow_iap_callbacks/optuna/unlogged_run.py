"""The handle for a trial that has no run."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..delivery.run_writer import RunWriter
from ..errors import IAPError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.data.dataset import Dataset


class UnloggedRun(RunWriter):
    """Accepts everything that a run's handle does, and logs nothing.

    Args:
        client: a client of the server.
    """

    def __init__(self, client: MlflowClient) -> None:
        self.__setstate__((client, "name:", uuid.uuid4().hex))

    def log_artifact(
        self, local_path: str | Path, artifact_path: str | None = None, *, copy: bool = True
    ) -> None:
        pass

    def log_model(
        self, local_path: str | Path, name: str = "model", *, registered_name: str | None = None
    ) -> None:
        pass

    def log_input(
        self,
        dataset: Dataset,
        context: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        pass

    def finish_at_exit(self, status: str | None) -> None:
        pass

    def run_id(self, timeout: float | None = 60.0) -> str:
        raise IAPError(
            "The trial has no run, because it does not run in a study. Pass the study to "
            "`callback.run(trial, study=study)` if the trial is one of its trials."
        )

    def _append(self, kind: str, content: Any) -> None:
        pass
