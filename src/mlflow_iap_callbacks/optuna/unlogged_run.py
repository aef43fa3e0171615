"""The handle for a trial that has no run."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..delivery.run_writer import RunWriter
from ..errors import IAPError

if TYPE_CHECKING:
    from mlflow import MlflowClient


class UnloggedRun(RunWriter):
    """Accepts everything that a run's handle does, and logs nothing.

    Args:
        client: a client of the server.
    """

    def __init__(self, client: MlflowClient) -> None:
        self.__setstate__((client, "name:", uuid.uuid4().hex))

    def finish_at_exit(self, status: str | None) -> None:
        pass

    def run_id(self, timeout: float | None = 60.0) -> str:
        raise IAPError(
            "The trial has no run, because its study is unknown. Pass the study to "
            "`callback.run(trial, study=study)` if the trial is one of its trials."
        )

    def _append(self, kind: str, content: Any) -> None:
        pass

    def _keep(self, path: Path) -> str:
        return str(path)
