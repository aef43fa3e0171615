"""``mlflow-iap sync --other-hosts``: journals of other hosts that share the folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import click

from ..outbox.journal_folder import JournalReport
from ..outbox.owner import last_beat
from .console import console

# A process notes every 20 seconds that it is alive. Code that blocks its threads may delay this.
SECONDS_TO_WATCH = 90.0


def abandoned(journals: Sequence[JournalReport]) -> list[Path]:
    """Return the journals whose processes have ended.

    On a terminal, the user is asked for each host. Otherwise, the journals are watched for 90
    seconds. A process has ended if it gives no sign of life in this time.
    """
    if not journals or not sys.stdin.isatty():
        return unmoved(journals)
    return [
        journal.path
        for host in sorted({journal.host for journal in journals})
        if _is_confirmed(host, found := [each for each in journals if each.host == host])
        for journal in found
    ]


def unmoved(
    journals: Sequence[JournalReport], sleep: Callable[[float], None] = time.sleep
) -> list[Path]:
    """Return the journals whose processes give no sign of life."""
    before = {journal.path: last_beat(journal.path) for journal in journals}
    if before:
        console.print(
            f"Waiting {SECONDS_TO_WATCH:.0f} s to see which other hosts are still active."
        )
        sleep(SECONDS_TO_WATCH)
    return [path for path, beat in before.items() if last_beat(path) == beat]


def _is_confirmed(host: str, journals: Sequence[JournalReport]) -> bool:
    beats = [journal.last_beat for journal in journals if journal.last_beat is not None]
    ago = timedelta(seconds=max(0, int(time.time() - max(beats)))) if beats else "an unknown time"
    return click.confirm(
        f"{host} left {len(journals)} {'journal' if len(journals) == 1 else 'journals'} and last "
        f"wrote {ago} ago. Have its processes ended?"
    )
