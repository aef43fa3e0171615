"""Closing of a process's senders: deliver within a time limit, and report what remains."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console

from .progress import flush_with_bar
from .sender import Sender

_logger = logging.getLogger(__name__)

# Seconds to wait for a server that is unreachable.
_IF_AWAY = 5.0


def deliver_last(senders: Sequence[Sender], seconds: float) -> None:
    """End the runs that are still open, and deliver for up to ``seconds``. Ctrl-C stops it."""
    with suppress(KeyboardInterrupt):
        for sender in senders:
            if sender.outboxes:
                began = sender.clock.monotonic()
                sender.end_open_runs()
                sender.adopt_safely()
                _flush(sender, began + seconds)
                seconds -= sender.clock.monotonic() - began


def _flush(sender: Sender, ends: float) -> None:
    clock, away_ends = sender.clock, math.inf
    for _ in flush_with_bar(sender, Console(file=sys.stderr)):
        if sender.is_away:
            away_ends = min(away_ends, clock.monotonic() + _IF_AWAY)
        if clock.monotonic() > min(ends, away_ends):
            return


def report_rest(sender: Sender) -> None:
    """Report the records that stay on disk, and those that are lost."""
    volatile = sum(outbox.volatile for outbox in sender.outboxes)
    lost = volatile + sum(outbox.intake.lost for outbox in sender.outboxes)
    on_disk = sender.waiting - volatile
    if on_disk:
        _logger.warning(
            "%d records for %s stay on disk. `mlflow-iap sync` sends them; so does the next "
            "process on this machine that logs to that server.",
            on_disk,
            sender.server,
        )
    if lost:
        _logger.warning(
            "%d records for %s are lost, because they were in memory only.", lost, sender.server
        )
