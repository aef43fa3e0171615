"""The progress bar of a delivery."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from tqdm import tqdm

from .sender import Sender

_SECONDS_WITHOUT_BAR = 1.0


class _Bar(tqdm):  # type: ignore[type-arg]
    monitor_interval = 0  # no extra thread: none can be started while the interpreter exits


class DeliveryBar:
    """Shows how many of the waiting records were sent, in a terminal or notebook.

    It appears after a second.

    Args:
        senders: deliver the records.
        console: where it is shown.
    """

    def __init__(self, senders: Sequence[Sender], console: Console) -> None:
        self._senders = senders
        self._console = console
        self._shown_at = math.inf
        if senders and (console.is_terminal or console.is_jupyter):
            self._shown_at = self._now() + _SECONDS_WITHOUT_BAR
        self._total = self._waiting()
        self._bar: Any = None

    def update(self) -> None:
        """Show the current state."""
        if self._now() < self._shown_at:
            return
        waiting = self._waiting()
        self._total = max(self._total, waiting)
        if self._bar is None:
            servers = ", ".join(sender.server for sender in self._senders)
            self._bar = _Bar(
                desc=f"sending to {servers}",
                total=self._total,
                unit=" records",
                leave=False,
                file=self._console.file,
            )
        self._bar.total, self._bar.n = self._total, self._total - waiting
        self._bar.refresh()

    def __enter__(self) -> DeliveryBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _waiting(self) -> int:
        return sum(sender.waiting for sender in self._senders)

    def _now(self) -> float:
        return self._senders[0].clock.monotonic() if self._senders else 0.0


def deliver(sender: Sender, console: Console) -> None:
    """Deliver waiting records, with a bar. Return when none is left or all are being retried."""
    with DeliveryBar([sender], console) as bar:
        while not sender.flush(0.2) and not sender.is_stuck:
            bar.update()
