"""What came of a sweep's log, as a table for a terminal and for a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Summary:
    """A small table.

    Args:
        rows: what stands in it, by what it says.
    """

    rows: Mapping[str, str]

    def __rich__(self) -> Table:
        table = Table(box=None, show_header=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, text in self.rows.items():
            table.add_row(name, text)
        return table

    def __str__(self) -> str:
        # Wide enough for links, which a line's end would break.
        longest = max(map(len, self.rows.values()), default=0)
        width = max(100, max(map(len, self.rows), default=0) + longest + 4)
        console = Console(width=width, color_system=None, markup=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self.rows.items()
        )
        return f"<table>{cells}</table>"
