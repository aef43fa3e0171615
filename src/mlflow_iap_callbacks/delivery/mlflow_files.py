"""Files in MLflow's own formats: text, JSON, figures, images and tables."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlflow import MlflowClient


class MlflowFiles(MlflowClient):
    """The methods of MLflow's client that write a file and upload it, without a server.

    MLflow's own code decides on formats and names. Each file is passed to ``log_artifact`` instead
    of being uploaded. New rows of a table are added after those that this object wrote.

    Args:
        log_artifact: called with each file and its folder in the run's artifacts.
        set_tags: called with tags of the run.
    """

    def __init__(
        self,
        log_artifact: Callable[[str | Path, str | None], None],
        set_tags: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._log_artifact, self._set_tags = log_artifact, set_tags
        self._tables: dict[str, bytes] = {}  # content by path
        self._tags: dict[str, Any] = {}
        self._appending = threading.Lock()

    def log_table(self, run_id: str, data: Any, artifact_file: str) -> None:
        with self._appending:
            self._tables.setdefault(artifact_file, b"")
            # MLflow replaces the images of a table with their paths.
            super().log_table(run_id, data.copy() if hasattr(data, "copy") else data, artifact_file)

    # MLflow's client calls the methods below.

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        path = "/".join(filter(None, (artifact_path, Path(local_path).name)))
        if path in self._tables:
            self._tables[path] = Path(local_path).read_bytes()
        self._log_artifact(local_path, artifact_path)

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        self._tags[key] = value
        self._set_tags({key: value})

    def list_artifacts(self, run_id: str, path: str | None = None) -> list[Any]:
        return [SimpleNamespace(path=path) for path, content in self._tables.items() if content]

    def download_artifacts(self, run_id: str, path: str, dst_path: str | None = None) -> str:
        file = Path(str(dst_path), Path(path).name)
        file.write_bytes(self._tables[path])
        return str(file)

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(tags=self._tags))
