"""Why a trial failed: Optuna tells it to its log, and to nobody else."""

from __future__ import annotations

import logging
import re
import threading
import traceback

_FAILED = re.compile(r"Trial (\d+) failed with parameters")
_last = threading.local()


class _Listener(logging.Handler):
    """Keeps the last failure of each thread, which is where a trial's callbacks are called too."""

    def emit(self, record: logging.LogRecord) -> None:
        found = _FAILED.match(record.getMessage())
        if found and record.exc_info and record.exc_info[1] is not None:
            _last.failure = (int(found[1]), record.created, text_of(record.exc_info[1]))


def listen() -> None:
    """Begin to; once per process. What Optuna's verbosity keeps from its log is not heard."""
    logger = logging.getLogger("optuna")
    if not any(isinstance(handler, _Listener) for handler in logger.handlers):
        logger.addHandler(_Listener(logging.WARNING))


def heard(number: int, ended: float) -> str | None:
    """The traceback of a trial that failed in this thread.

    Args:
        number: of the trial.
        ended: when, in seconds since 1970.
    """
    failed, moment, text = getattr(_last, "failure", (None, 0.0, None))
    return text if failed == number and abs(moment - ended) < 60.0 else None


def text_of(error: BaseException) -> str:
    """Its traceback."""
    return "".join(traceback.format_exception(error))
