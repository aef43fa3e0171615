"""Artifacts of ``log_if_best``, copied at once and logged if their trial turns out to be best."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..delivery.run import IAPRun

if TYPE_CHECKING:
    import optuna


class HeldArtifact:
    """A copy of a file or folder, kept until its trial has ended."""

    def __init__(self, path: Path, artifact_path: str | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mlflow-iap-held-")
        self._copy = Path(self._folder.name) / path.resolve().name
        self._artifact_path = artifact_path
        if path.is_dir():
            shutil.copytree(path, self._copy)
        else:
            shutil.copy2(path, self._copy)

    def release(self, run: IAPRun, *, is_best: bool) -> None:
        """Log the copy if the trial is best, and delete it."""
        if is_best:
            run.log_artifact(self._copy, self._artifact_path)
        self._folder.cleanup()


def is_best(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial has the best value or, with several objectives, is on the Pareto front."""
    return any(each.number == trial.number for each in study.best_trials)
