"""What ``flush`` and ``close`` return: how much was delivered."""

from __future__ import annotations

from typing import NamedTuple

from .sender import Sender


class IAPFlushResult(NamedTuple):
    """How many of this process's records were delivered to one server.

    Records are metrics, params, tags, files and ends of runs. The result is true if all that were
    logged before the call were delivered, and false if some are waiting or were refused.

    Attributes:
        delivered: number of records that MLflow has accepted.
        waiting: number of records that stay in the journal and are sent later; 0 if all that were
            logged before the call were delivered, even if other threads have logged more since.
        refused: number of metrics, params, tags and other records that MLflow permanently rejected
            since the process started. ``mlflow-iap status`` says why.
    """

    delivered: int
    waiting: int
    refused: int

    def __bool__(self) -> bool:
        return not (self.waiting or self.refused)


def result_of(sender: Sender, *, is_delivered: bool) -> IAPFlushResult:
    """Return what a sender has delivered so far.

    Args:
        sender: delivers the records.
        is_delivered: whether nothing that was logged before the call is waiting.
    """
    waiting = 0 if is_delivered else sender.waiting
    return IAPFlushResult(sender.delivered, waiting, sender.refused)
