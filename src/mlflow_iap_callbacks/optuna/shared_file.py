"""Warns if Optuna and MLflow use the same SQLite file."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

_logger = logging.getLogger("mlflow_iap_callbacks")


def warn_of_shared_file(study: optuna.Study, tracking_uri: str) -> None:
    """Warn if the study is in the file that MLflow would use, which cannot serve both."""
    storage: Any = study._storage
    path = _path_of(getattr(getattr(storage, "_backend", storage), "url", None))
    if path is not None and path == _path_of(tracking_uri):
        _logger.warning(
            "Study %r is in %s, which is MLflow's database too. Optuna and MLflow keep the "
            "versions of their schemas in one table, so MLflow cannot open it. Give one of them "
            "another file, such as MLFLOW_TRACKING_URI=sqlite:///mlflow.db.",
            study.study_name,
            path,
        )


def _path_of(url: str | None) -> str | None:
    from sqlalchemy.engine import make_url

    with suppress(Exception):  # no URL of a database
        parsed = make_url(url or "")
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            return os.path.realpath(parsed.database)
    return None
