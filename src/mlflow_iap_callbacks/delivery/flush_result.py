"""What ``flush`` and ``close`` return: how much was delivered."""

from __future__ import annotations

from typing import NamedTuple

from .sender import Sender


class IAPFlushResult(NamedTuple):
    """How many of this process's records were delivered to one server.

    Records are metrics, params, tags, files and ends of runs. The result is true if all of them
    were delivered, and false if some are waiting or were refused.

    Attributes:
        delivered: number of records that MLflow has accepted.
        waiting: number of records that stay in the journal and are sent later.
        refused: number of metrics, params, tags and other records that MLflow permanently rejected
            since the process started. ``mlflow-iap status`` says why.
    """

    delivered: int
    waiting: int
    refused: int

    def __bool__(self) -> bool:
        return not (self.waiting or self.refused)


def result_of(sender: Sender) -> IAPFlushResult:
    """Return what a sender has delivered so far."""
    return IAPFlushResult(sender.delivered, sender.waiting, sender.refused)
