"""The console that the commands print to."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console(highlight=False)


def print_line(text: str) -> None:
    """Print a text unchanged and without line breaks, no matter how long it is."""
    console.print(text, markup=False, soft_wrap=True)


def print_rows(rows: Mapping[str, str], mark: str = "") -> None:
    """Print a table of names and values. Each row begins with ``mark``."""
    table = Table(box=None, show_header=False)
    table.add_column(width=2)
    table.add_column(width=11)
    table.add_column(overflow="fold")  # never cuts paths and commands
    for name, value in rows.items():
        table.add_row(mark, f"[bold]{name}", escape(value))
    console.print(table)
