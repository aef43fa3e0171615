"""What is shown of a delivery, in a terminal or a notebook: its progress, and links to runs."""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from tqdm import tqdm

from ..plurals import counted
from .sender import Sender

_SECONDS_WITHOUT_BAR = 1.0


class _Bar(tqdm):  # type: ignore[type-arg]
    monitor_interval = 0  # no extra thread: none can be started while the interpreter exits


class NotebookLine:
    """One line in the output of a notebook's cell, which is replaced by each new text."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str) -> None:
        """Show a text in place of the last one."""
        from IPython.display import display

        content = _for_notebook(text, html.escape(text))
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Show what is being done in one line of a terminal or a notebook.

    Yields:
        A function that shows a text in place of the last one. The last text stays in a notebook.
    """
    console = Console(file=sys.stderr)
    if console.is_jupyter:
        yield NotebookLine().show
    else:
        with console.status("") as status:
            yield status.update


def show_link(name: str, url: str) -> None:
    """Show a link: one to click in a notebook, a line on stderr elsewhere."""
    text = f"{name}: {url}"
    if Console(file=sys.stderr).is_jupyter:
        from IPython.display import display

        address = html.escape(url)
        link = f"{html.escape(name)}: <a href='{address}' target='_blank'>{address}</a>"
        display(_for_notebook(text, link), raw=True)
    else:
        tqdm.write(text, file=sys.stderr)  # above a progress bar of the program


def _for_notebook(text: str, content: str) -> dict[str, str]:
    return {"text/plain": text, "text/html": f"<div>{content}</div>"}


class DeliveryBar:
    """Shows how many of the waiting records were sent, in a terminal or notebook.

    It appears after a second.

    Args:
        senders: deliver the records; at least one.
        console: where it is shown.
    """

    def __init__(self, senders: Sequence[Sender], console: Console) -> None:
        self._senders = senders
        self._console = console
        self._shown_at = math.inf
        if console.is_terminal or console.is_jupyter:
            self._shown_at = self._now() + _SECONDS_WITHOUT_BAR
        self._total = self._waiting()
        self._bar: Any = None
        self._line: NotebookLine | None = None

    def update(self) -> None:
        """Show the current state."""
        if self._now() < self._shown_at:
            return
        waiting = self._waiting()
        self._total = max(self._total, waiting)
        servers = ", ".join(sender.server for sender in self._senders)
        if self._console.is_jupyter:
            self._line = self._line or NotebookLine()
            done = self._total - waiting
            total = counted(self._total, "record")
            self._line.show(f"Sending to {servers}: {done:,} of {total}.")
            return
        if self._bar is None:
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
        if self._line is not None:
            waiting, servers = self._waiting(), ", ".join(each.server for each in self._senders)
            rest = f"; {waiting:,} left to send later" if waiting else ""
            sent = counted(self._total - waiting, "record")
            self._line.show(f"Sent {sent} to {servers}{rest}.")

    def _waiting(self) -> int:
        return sum(sender.waiting for sender in self._senders)

    def _now(self) -> float:
        return self._senders[0].clock.monotonic()


def deliver(sender: Sender, console: Console) -> None:
    """Deliver waiting records, with a bar. Return when none is left or all are being retried."""
    with DeliveryBar([sender], console) as bar:
        while not sender.flush(0.2) and not sender.is_stuck:
            bar.update()
