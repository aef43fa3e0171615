"""A progress bar for what is being delivered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from rich.console import Console
from rich.progress import Progress

from .sender import Sender

_SECONDS_ALONE = 1.0  # without a bar


def flush_with_bar(sender: Sender, console: Console) -> Iterator[None]:
    """Deliver all that waits, on a terminal with a bar once it takes a second; yields meanwhile."""
    # What others go on logging meanwhile would be no end of it.
    upto, total, began = sender.marks(), sender.waiting, time.monotonic()
    with ExitStack() as stack:
        bar = None
        while not sender.flush(0.2, upto):
            if bar is None and console.is_terminal and time.monotonic() - began > _SECONDS_ALONE:
                # Without a thread of its own, which could not be started when the process ends.
                bar = stack.enter_context(
                    Progress(console=console, transient=True, auto_refresh=False)
                )
                task = bar.add_task(f"sending to {sender.server}")
            if bar is not None:
                total = max(total, sender.waiting)
                bar.update(task, total=total, completed=total - sender.waiting, refresh=True)
            yield
