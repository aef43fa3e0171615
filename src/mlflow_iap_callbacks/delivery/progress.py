"""A progress bar for what is being delivered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from rich.console import Console
from rich.progress import Progress

from .sender import Sender

_SECONDS_WITHOUT_BAR = 1.0


def flush_with_bar(sender: Sender, console: Console) -> Iterator[None]:
    """Deliver all that waits, on a terminal with a bar once it takes a second; yields meanwhile."""
    # What others go on logging meanwhile would be no end of it.
    upto, total, began = sender.marks(), sender.waiting, sender.clock.monotonic()
    with ExitStack() as stack:
        bar = None
        while not sender.flush(0.2, upto):
            is_late = sender.clock.monotonic() - began > _SECONDS_WITHOUT_BAR
            if bar is None and console.is_terminal and is_late:
                # Without a thread of its own, which could not be started when the process ends.
                bar = stack.enter_context(
                    Progress(console=console, transient=True, auto_refresh=False)
                )
                task = bar.add_task(f"sending to {sender.server}")
            if bar is not None:
                total = max(total, sender.waiting)
                bar.update(task, total=total, completed=total - sender.waiting, refresh=True)
            yield
