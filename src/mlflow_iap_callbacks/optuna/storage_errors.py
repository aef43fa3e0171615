"""Errors of a storage that its user closed or removed: one warning for each type."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

_logger = logging.getLogger("mlflow_iap_callbacks")

_reported: set[type[Exception]] = set()


@contextmanager
def reading(study: optuna.Study) -> Iterator[None]:
    """Read a study in a thread of this package; log each type of error once, and raise none."""
    try:
        try:
            yield
        finally:
            # This thread may have opened a connection of its own to the storage.
            getattr(study, "_storage").remove_session()  # noqa: B009
    except Exception as error:  # noqa: BLE001 - storages raise what their databases raise
        if type(error) not in _reported:
            _reported.add(type(error))
            _logger.warning(
                "Could not log the state of study %r (%.200s). If its storage was closed or "
                "removed, nothing is wrong; the runs of its trials are complete. This kind of "
                "error is reported only once.",
                study.study_name,
                " ".join(str(error).split()),
            )
