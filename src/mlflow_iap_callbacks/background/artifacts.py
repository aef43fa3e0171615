"""The artifacts of a run or a logged model: copied when they are logged, and uploaded later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository, verify_artifact_path
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking._tracking_service import utils

from ..delivery.provisional_models import has_provisional_id
from ..delivery.sender import is_delivering
from .writes import Writes

_MOST_KNOWN = 1000


def use(writes: Writes, artifact_uri: str, run_id: str, model_id: str | None = None) -> None:
    """Make MLflow log the artifacts of a run, or of a model of that run, in the background.

    Args:
        writes: what this process logs to the server.
        artifact_uri: where MLflow stores the artifacts.
        run_id: the run.
        model_id: the model, if they are artifacts of a model.
    """
    repository = BackgroundArtifacts(writes, artifact_uri, run_id, model_id)
    # MLflow looks here first, and asks the server for the URI only if it finds no repository.
    utils._artifact_repos_cache[model_id or run_id] = repository
    if len(utils._artifact_repos_cache) > _MOST_KNOWN:
        utils._artifact_repos_cache.popitem(last=False)


class BackgroundArtifacts(ArtifactRepository):
    """MLflow's artifact repository of a run or a model, with uploads in the background.

    Args:
        writes: what this process logs to the server.
        artifact_uri: where MLflow stores the artifacts.
        run_id: the run; uploads are delivered in order with everything else logged to it.
        model_id: the model, if they are artifacts of a model.
    """

    def __init__(
        self, writes: Writes, artifact_uri: str, run_id: str, model_id: str | None
    ) -> None:
        super().__init__(artifact_uri, tracking_uri=writes.tracking_uri)
        self._writes = writes
        self._run_id, self._model_id = run_id, model_id
        self._found: Any = None

    @property
    def _repository(self) -> Any:
        """MLflow's own repository."""
        if self._found is None or has_provisional_id(self.artifact_uri):
            self.artifact_uri = self._writes.with_model_ids(self.artifact_uri)
            self._found = get_artifact_repository(self.artifact_uri, tracking_uri=self.tracking_uri)
        return self._found

    def log_artifact(self, local_file: str | Path, artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        content = {"to": artifact_path}
        is_sent = is_delivering() or self._model_id is not None
        if is_sent or not self._append("artifact", Path(local_file), content):
            self._repository.log_artifact(local_file, artifact_path)

    def log_artifacts(self, local_dir: str | Path, artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        if is_delivering() or not os.path.isdir(local_dir):
            is_stored = False
        elif self._model_id is None:
            content = {"to": artifact_path}
            paths = sorted(Path(local_dir).iterdir())
            is_stored = all(self._append("artifact", path, content) for path in paths)
        else:
            content = {"to": artifact_path, "model_id": self._model_id}
            is_stored = self._append("model_files", Path(local_dir), content)
        if not is_stored:
            self._repository.log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        found: list[FileInfo] = self._after_writes().list_artifacts(path)
        return found

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
        return str(self._after_writes().download_artifacts(artifact_path, dst_path))

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self._after_writes().delete_artifacts(artifact_path)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._after_writes()._download_file(remote_file_path, local_path)

    def _after_writes(self) -> Any:
        if not is_delivering():
            self._writes.wait()
        return self._repository

    def _append(self, kind: str, path: Path, content: dict[str, Any]) -> bool:
        """Append a file or folder; return False if the journal cannot take a copy."""
        try:
            self._writes.run(self._run_id).append_file(kind, path, content)
        except OSError:  # also if there is no such file: then MLflow raises its own error
            self._writes.wait()
            return False
        return True
