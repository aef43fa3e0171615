"""Why a trial failed. Optuna writes the reason only to its log."""

from __future__ import annotations

import logging
import re
import threading
import traceback
from functools import cache
from typing import NamedTuple

from ..delivery.run import IAPRun

_LOGGER = "optuna.study._optimize"
_FAILED = re.compile(
    r"Trial (\d+) failed with parameters: .*? because of the following error: (.*)", re.DOTALL
)
_last = threading.local()


class Failure(NamedTuple):
    """The reason in one line, and the traceback of the exception if there was one."""

    reason: str
    traceback: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return the failure that an exception describes."""
        text = "".join(traceback.format_exception(error))
        return cls(text.strip().rpartition("\n")[2], text)


class _Listened(logging.Logger):
    """Keeps the last failure of each thread; callbacks are called in the thread of their trial.

    For this, Optuna's logger creates records of warnings even if its level is higher, or if
    ``logging.config.dictConfig`` has disabled it. Such records are kept here, but not written.
    """

    is_disabled: bool

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        self.is_disabled = value

    def isEnabledFor(self, level: int) -> bool:
        return level == logging.WARNING or (not self.is_disabled and super().isEnabledFor(level))

    def handle(self, record: logging.LogRecord) -> None:
        _keep(record)
        if not self.is_disabled and super().isEnabledFor(record.levelno):
            super().handle(record)


def listen() -> None:
    """Listen to Optuna's log."""
    logger = _logger_of_optuna()
    if not isinstance(logger, _Listened):
        is_disabled = logger.__dict__.pop("disabled", False)
        logger.__class__ = type(_Listened.__name__, (_Listened, type(logger)), {})
        logger.disabled = is_disabled


@cache
def _logger_of_optuna() -> logging.Logger:
    return logging.getLogger(_LOGGER)  # takes a lock


def last_failure(number: int, ended: float) -> Failure | None:
    """Failure of a trial that failed in this thread at ``ended``, in seconds since 1970."""
    failed, moment, failure = getattr(_last, "failure", (None, 0.0, None))
    return failure if failed == number and abs(moment - ended) < 60.0 else None


def log_failure(run: IAPRun, failure: Failure) -> None:
    """Log the reason as a tag, and the traceback as an artifact."""
    run.set_tags({"error": failure.reason})
    if failure.traceback is not None:
        run.log_text(failure.traceback, "traceback.txt")


def _keep(record: logging.LogRecord) -> None:
    found = _FAILED.match(record.getMessage())
    if found:
        error = record.exc_info[1] if record.exc_info else None
        failure = Failure(found[2].rstrip(".")) if error is None else Failure.of(error)
        _last.failure = (int(found[1]), record.created, failure)
