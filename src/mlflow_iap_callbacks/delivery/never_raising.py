"""Logs errors as warnings, so that logging never stops a study or training."""

from __future__ import annotations

import logging

_logger = logging.getLogger("mlflow_iap_callbacks")


class never_raising:
    """Context manager that logs an exception as a warning instead of raising it.

    Args:
        what: what is being logged, as in "Could not log WHAT".
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if isinstance(error, Exception):
            warn_of(self._what, error)
            return True
        return False


def warn_of(what: str, error: Exception) -> None:
    """Log a warning that something could not be logged.

    Args:
        what: what it is, as for ``never_raising``.
        error: why.
    """
    reason = str(error).rstrip(".")
    _logger.warning("Could not log %s (%s). The program continues without it.", what, reason)
