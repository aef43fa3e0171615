"""Deletes for good what users have deleted: `mlflow gc`, with direct access to the artifacts.

MLflow's own command would delete the artifacts through the server behind Identity-Aware Proxy,
where users may not delete each other's artifacts.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.store.artifact import artifact_repository_registry
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from sqlalchemy import URL

from .start_error import StartError, first_line

# Not empty, because MLflow's command would then delete garbage of any age.
_AGE = re.compile(r"(?=.)(\d+d)?(\d+h)?(\d+m)?(\d+s)?")


def delete_garbage(url: URL, artifacts: str, older_than: str) -> None:
    """Delete runs, experiments and logged models with their artifacts, and print their ids.

    Args:
        url: URL of the database.
        artifacts: URI of the folder that the server's `mlflow-artifacts:/` stands for.
        older_than: how long ago they must have been deleted, such as 30d or 12h30m.

    Raises:
        StartError: if `older_than` is malformed, or something cannot be deleted. What was
            deleted before that stays deleted.
    """
    if not _AGE.fullmatch(older_than):
        raise StartError(f"{older_than!r} is not a length of time. Write it like 30d or 12h30m.")
    from mlflow.cli import gc  # with all of MLflow's commands

    def repository(artifact_uri: str, **_: Any) -> ArtifactRepository:
        # Both `mlflow-artifacts:/PATH` and `mlflow-artifacts://HOST/PATH`.
        path = urlsplit(artifact_uri).path
        return artifact_repository_registry.get_artifact_repository(f"{artifacts}{path}")

    registry = artifact_repository_registry._artifact_repository_registry
    registry.register("mlflow-artifacts", repository)
    text = url.render_as_string(hide_password=False)
    arguments = ["--older-than", older_than, "--backend-store-uri", text, "--tracking-uri", text]
    try:
        gc.main([*arguments, "--artifacts-destination", artifacts], standalone_mode=False)
    except MlflowException as error:
        raise StartError(f"Not everything could be deleted: {first_line(error)}.") from None
