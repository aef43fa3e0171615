"""The name of a study's experiment, even if MLflow does not accept the study's name."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..limits import MAX_EXPERIMENT_NAME_LENGTH

if TYPE_CHECKING:
    import optuna

_logger = logging.getLogger("mlflow_iap_callbacks")


def experiment_name_of(study: optuna.Study) -> str | None:
    """Return the name of the experiment for a study; None if the study's name is empty."""
    name: str = study.study_name
    if not name:
        _logger.warning(
            "The study has an empty name, so it is logged to MLflow's active experiment. Give the "
            "callback an experiment_name to log it to another one."
        )
        return None
    if len(name) > MAX_EXPERIMENT_NAME_LENGTH:
        _logger.warning(
            "The name of study '%.30s...' has %d characters, and MLflow accepts %d. The name of "
            "its experiment is cut. Give the callback an experiment_name to choose one.",
            name,
            len(name),
            MAX_EXPERIMENT_NAME_LENGTH,
        )
    return name[:MAX_EXPERIMENT_NAME_LENGTH]
