"""What the commands print on."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

console = Console(highlight=False)


def plain_table() -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(width=2)
    table.add_column(width=11)
    table.add_column(overflow="fold")  # paths and commands stay whole
    return table
