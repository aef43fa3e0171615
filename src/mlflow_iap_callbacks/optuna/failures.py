"""Why a trial failed. Optuna writes the exception only to its log."""

from __future__ import annotations

import logging
import re
import threading
import traceback

from ..delivery.run_writer import IAPRun

_FAILED = re.compile(r"Trial (\d+) failed with parameters")
_last = threading.local()


class _Listener(logging.Handler):
    """Keeps the last failure of each thread; callbacks are called in the thread of their trial."""

    def emit(self, record: logging.LogRecord) -> None:
        found = _FAILED.match(record.getMessage())
        if found and record.exc_info and record.exc_info[1] is not None:
            _last.failure = (int(found[1]), record.created, traceback_of(record.exc_info[1]))


def listen() -> None:
    """Listen to Optuna's log; its level must be WARNING or lower."""
    logger = logging.getLogger("optuna")
    if not any(isinstance(handler, _Listener) for handler in logger.handlers):
        logger.addHandler(_Listener(logging.WARNING))


def last_failure(number: int, ended: float) -> str | None:
    """Traceback of a trial that failed in this thread at ``ended``, in seconds since 1970."""
    failed, moment, text = getattr(_last, "failure", (None, 0.0, None))
    return text if failed == number and abs(moment - ended) < 60.0 else None


def traceback_of(error: BaseException) -> str:
    """Format an exception with its traceback."""
    return "".join(traceback.format_exception(error))


def log_failure(run: IAPRun, text: str) -> None:
    """Log a traceback as an artifact, and its last line as a tag."""
    run.set_tags({"error": text.strip().rpartition("\n")[2]})
    run.log_text(text, "traceback.txt")
