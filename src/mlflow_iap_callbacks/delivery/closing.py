"""What is done when a process ends or a callback is closed, within a time limit.

Open runs are ended, and everything is delivered. Plots are drawn if there is time left. Finally, a
warning says what stays on disk.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from ..plurals import counted
from .progress import DeliveryBar
from .sender import Marks, Sender

_logger = logging.getLogger("mlflow_iap_callbacks")

# Seconds to wait for an unreachable server, unless the caller is patient.
_IF_AWAY = 5.0
_SECONDS_BETWEEN_LOOKS = 0.2


class Deadline:
    """The end of a time limit.

    Args:
        now: monotonic clock, in seconds.
        seconds: length of the time limit.
    """

    def __init__(self, now: Callable[[], float], seconds: float) -> None:
        self._now = now
        self._ends = now() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self._ends - self._now())

    def shorten(self, seconds: float) -> None:
        """Leave at most this many seconds."""
        self._ends = min(self._ends, self._now() + seconds)


Work = Callable[[Deadline], None]


def close(
    senders: Sequence[Sender], deadline: Deadline, *, end: Iterable[Work], draw: Iterable[Work]
) -> bool:
    """End runs and deliver everything; then draw plots if there is time left.

    Args:
        senders: deliver the records.
        deadline: the time limit for all of this.
        end: logs what is known only at the end, and ends runs.
        draw: logs plots.

    Returns:
        Whether everything was delivered.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C. A warning says how many records stay on disk.
    """
    with _reported_if_interrupted(senders):
        for work in end:
            work(deadline)
        if not _deliver(senders, deadline):
            return False
        for work in draw:
            work(deadline)
        return _deliver(senders, deadline)


def flush(sender: Sender, timeout: float | None) -> bool:
    """Deliver everything that was logged so far, and keep trying if the server is unreachable.

    Args:
        sender: delivers the records.
        timeout: seconds to wait; None for no limit.

    Returns:
        Whether everything was delivered.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C. A warning says how many records stay on disk.
    """
    deadline = Deadline(sender.clock.monotonic, math.inf if timeout is None else timeout)
    with _reported_if_interrupted([sender]):
        return _deliver([sender], deadline, is_patient=True)


def deliver_own(sender: Sender, deadline: Deadline) -> bool:
    """Deliver what this process logged so far, but wait only briefly for an unreachable server.

    Returns:
        Whether everything was delivered.
    """
    return _wait_for({sender: [(sender.outbox, sender.outbox.last_seq)]}, deadline)


def _deliver(senders: Sequence[Sender], deadline: Deadline, *, is_patient: bool = False) -> bool:
    marks = {sender: sender.marks() for sender in senders if sender.outboxes}
    return _wait_for(marks, deadline, is_patient=is_patient)


def _wait_for(
    waiting: dict[Sender, Marks], deadline: Deadline, *, is_patient: bool = False
) -> bool:
    if not waiting:
        return True
    away_ends = math.inf
    with DeliveryBar([*waiting], Console(file=sys.stderr)) as bar:
        while True:
            for sender, marks in [*waiting.items()]:
                seconds = _SECONDS_BETWEEN_LOOKS / len(waiting)
                if sender.flush(seconds if deadline.left else 0.0, marks):
                    del waiting[sender]
            if not waiting or not deadline.left:
                return not waiting
            now = next(iter(waiting)).clock.monotonic()
            is_away = not is_patient and all(s.is_away or s.has_only_asides for s in waiting)
            away_ends = min(away_ends, now + _IF_AWAY) if is_away else math.inf
            if now >= away_ends:
                return False
            bar.update()


@contextmanager
def _reported_if_interrupted(senders: Sequence[Sender]) -> Iterator[None]:
    sent_before = [sender.delivered for sender in senders]
    try:
        yield
    except KeyboardInterrupt:
        for sender, before in zip(senders, sent_before, strict=True):
            sent = sender.delivered - before
            _logger.warning(
                "Interrupted after sending %s to %s.", counted(sent, "record"), sender.server
            )
            report_rest(sender)
            sender.interrupted_at = sender.marks()
        raise


def report_rest(sender: Sender) -> None:
    """Report the records that stay on disk, and those that are lost."""
    volatile = sum(outbox.volatile for outbox in sender.outboxes)
    lost = volatile + sum(outbox.intake.lost for outbox in sender.outboxes)
    on_disk = sender.waiting - volatile
    if on_disk:
        _logger.warning(
            "%s left on disk for %s. `mlflow-iap sync` sends what is left; so does the next "
            "process on this machine that logs to that server.",
            counted(on_disk, "record"),
            sender.server,
        )
    if lost:
        _logger.warning(
            "%s for %s lost: nothing could be written to disk.",
            counted(lost, "record"),
            sender.server,
        )
