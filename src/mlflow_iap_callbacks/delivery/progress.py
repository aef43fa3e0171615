"""The progress bar of a delivery."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from rich.console import Console
from rich.progress import Progress

from .sender import Sender

_SECONDS_WITHOUT_BAR = 1.0


def flush_with_bar(sender: Sender, console: Console) -> Iterator[None]:
    """Deliver all waiting records, and yield repeatedly meanwhile.

    In a terminal, a progress bar appears after a second.
    """
    # Only what was logged before: other threads may go on logging without end.
    upto, total, began = sender.marks(), sender.waiting, sender.clock.monotonic()
    with ExitStack() as stack:
        bar = None
        while not sender.flush(0.2, upto):
            is_late = sender.clock.monotonic() - began > _SECONDS_WITHOUT_BAR
            if bar is None and console.is_terminal and is_late:
                # No refresh thread: none can be started while the interpreter exits.
                bar = stack.enter_context(
                    Progress(console=console, transient=True, auto_refresh=False)
                )
                task = bar.add_task(f"sending to {sender.server}")
            if bar is not None:
                total = max(total, sender.waiting)
                bar.update(task, total=total, completed=total - sender.waiting, refresh=True)
            yield
