"""Tables of measurements, for the terminal and as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

US = "\N{MICRO SIGN}s"


@dataclass(frozen=True)
class Table:
    """A table: `names` columns of names, then columns of numbers."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 2

    def markdown(self) -> str:
        rule = ["---"] * self.names + ["--:"] * (len(self.heads) - self.names)
        lines = [f"| {' | '.join(line)} |" for line in (self.heads, rule, *self.rows)]
        return "\n".join(lines)


def short(value: float) -> str:
    """Return a number with three digits, or with all digits before the point."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def wide_console() -> Console:
    """Return a console that is wide enough for the tables, even if it writes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def show(console: Console, tables: Iterable[Table]) -> None:
    for table in tables:
        shown = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
        for number, head in enumerate(table.heads):
            shown.add_column(
                head, justify="left" if number < table.names else "right", no_wrap=True
            )
        for row in table.rows:
            shown.add_row(*row, style="bold" if "ours" in row[: table.names] else None)
        console.print(shown)


def _is_installed(package: str) -> bool:
    with suppress(PackageNotFoundError):
        return bool(version(package))
    return False


def conditions(packages: Iterable[str]) -> str:
    """Return the day, the machine and the versions of packages, as one sentence."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages if _is_installed(name))
    machine = f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}"
    day = datetime.now(timezone.utc).date()
    return f"{day}; {machine}, Python {platform.python_version()}, {versions}."
